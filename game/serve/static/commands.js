// Commands: by key, by button, and by a page that nobody sees any more.

import { keyOf } from "./controls.js";
import { $ } from "./page.js";
import { chooseSlot } from "./saves.js";
import { command, session } from "./session.js";
import { toast } from "./words.js";

const ASLEEP = "reverie-asleep"; // in this tab's memory: the session was paused because nobody saw it
let controls, screen;
let rewindKey = null;

const DO = {
  pause: () => command(session.paused ? "resume" : "pause"),
  step: () => command("step"),
  restart: () => command("restart"),
  rewind: () => command("rewind"),
  save: () => command("save"),
  load: () => command("load"),
  help: () => ($("help").open ? $("help").close() : $("help").showModal()),
  hud: () => ($("hud").hidden = !$("hud").hidden),
  shot: screenshot,
  full: () => (document.fullscreenElement ? document.exitFullscreen() : $("game").requestFullscreen?.().catch(() => {})),
};
const BY_KEY = { p: "pause", Pause: "pause", ".": "step", Enter: "restart", F2: "save", F4: "load", F1: "help", F3: "hud", F8: "shot", F11: "full" };

function commandOf(event) {
  if (event.key === "Backspace" || (event.ctrlKey && event.key.toLowerCase() === "z" && !controls.keys.has("ctrl"))) return "rewind";
  if (event.ctrlKey || event.altKey || event.metaKey) return null;
  return BY_KEY[event.key.length === 1 ? event.key.toLowerCase() : event.key] ?? null;
}

// Begin to listen; `hands` are the controls, `view` is the screen.
export function listen(hands, view) {
  [controls, screen] = [hands, view];
  addEventListener("keydown", press);
  addEventListener("keyup", (event) => {
    controls.up(keyOf(event.code), "keyboard");
    if (event.code === rewindKey) [rewindKey] = [null, command("rewind end")];
  });
  addEventListener("blur", letGo);
  document.addEventListener("visibilitychange", lookAway);
  for (const name of ["pause", "hud", "help", "full"]) $(`b-${name}`).addEventListener("click", () => (DO[name](), $("picture").focus({ preventScroll: true })));
  for (const name of ["save", "load", "restart", "step", "shot"]) $(`m-${name}`).addEventListener("click", DO[name]);
  const back = $("b-rewind");
  back.addEventListener("pointerdown", (event) => (back.setPointerCapture(event.pointerId), command("rewind")));
  for (const name of ["pointerup", "pointercancel"]) back.addEventListener(name, () => command("rewind end"));
  $("b-menu").addEventListener("click", () => {
    $("menu").hidden = !$("menu").hidden;
    $("b-menu").setAttribute("aria-expanded", !$("menu").hidden);
  });
  $("m-leave").addEventListener("click", () => command("leave"));
}

function press(event) {
  if ($("game").hidden || !session.world) return;
  const key = keyOf(event.code);
  if ($("help").open) return event.key === "F1" ? (event.preventDefault(), DO.help()) : undefined;
  if (event.shiftKey && /^[1-9]$/.test(key) && !controls.keys.has("shift")) return event.preventDefault(), chooseSlot(Number(key));
  const what = commandOf(event);
  if (what === "rewind") {
    event.preventDefault();
    if (!event.repeat) [rewindKey] = [event.code, DO.rewind()];
    return;
  }
  if (controls.keys.has(key) && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    if (!event.repeat) controls.down(key, "keyboard");
    return;
  }
  if (what === null || (event.target.closest?.("button, a") && event.key === "Enter")) return;
  event.preventDefault();
  if (!event.repeat) DO[what]();
}

function letGo() {
  controls.releaseAll();
  if (rewindKey) [rewindKey] = [null, command("rewind end")];
}

function lookAway() {
  if ($("game").hidden || !session.world) return;
  letGo();
  if (document.hidden && !session.paused) {
    sessionStorage.setItem(ASLEEP, session.id); // a reload hides the page too, and is to go on afterwards
    command("pause"); // what nobody sees needs no pictures
  } else {
    wakeUp();
  }
}

// Somebody looks again.
export function wakeUp() {
  if (document.hidden || sessionStorage.getItem(ASLEEP) !== session.id) return;
  sessionStorage.removeItem(ASLEEP);
  command("resume");
}

function screenshot() {
  if (!session.world || !screen.bitmap) return;
  screen.picture().toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${session.world.name}-${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    toast(`Screenshot: ${link.download}`);
  });
}
