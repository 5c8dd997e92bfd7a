// Reverie in the browser: connects the page's parts with each other and with the server.

import { listen, wakeUp } from "./commands.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { drawKeys } from "./keyboard.js";
import { count, forget, stats, watch } from "./numbers.js";
import { $, coarse, element, sentence } from "./page.js";
import { drawSaved, drawSlots, savedGame } from "./saves.js";
import { Screen } from "./screen.js";
import { send, session } from "./session.js";
import { StartPage } from "./start.js";
import { loading, say, toast } from "./words.js";

const KEPT = "reverie-session"; // in this tab's memory: a reload goes on with its session
const REASONS = {
  left: "You have left. What was played can be taken along for ten minutes.",
  idle: "Nobody has pressed anything for a long time, so the session was ended.",
  vanished: "The page was away for more than a minute.",
};

const controls = new Controls(send);
const screen = new Screen($("picture"), send, (frame, now) => onFrame(frame, now), () => connection.withoutVideo());
const connection = new Connection(hear, (frame) => screen.receive(frame), () => screen.freeze(screen.epoch), over);
const start = new StartPage(begin);

// ---- a session's life

function show(page) {
  for (const id of ["start", "game", "over"]) $(id).hidden = id !== page;
}

async function begin(query, file) {
  let response;
  try {
    response = await fetch(`/sessions?${query}`, { method: "POST", body: file });
  } catch {
    return file ? "The server did not take the picture." : "The server does not answer.";
  }
  const answer = await response.json().catch(() => ({ error: `The server said ${response.status}.` }));
  if (!response.ok) return sentence(answer.error);
  sessionStorage.setItem(KEPT, answer.session);
  enter(answer.session);
  return "";
}

function enter(id) {
  session.id = id;
  Object.assign(session, { world: null, paused: false, lostSince: null, slot: 1, saved: [] });
  forget();
  $("menu").hidden = true;
  show("game");
  loading("opening the world", null);
  connection.open();
}

function over(words, files) {
  connection.close();
  sessionStorage.removeItem(KEPT);
  document.exitPointerLock?.();
  $("over-words").textContent = words;
  $("o-film").hidden = !files?.film;
  $("o-session").hidden = !files?.session;
  $("o-film").href = `/sessions/${session.id}/film.mp4`;
  $("o-session").href = `/sessions/${session.id}/session.jsonl`;
  $("o-saves").replaceChildren(...(files?.saved ?? []).map((slot) => savedGame(element("a", "Saved game", "item"), slot)));
  show("over");
  $("again").focus();
}

function hear(message) {
  switch (message.t) {
    case "hello":
      return hello(message);
    case "loading":
      return loading(message.what, message.part);
    case "epoch":
      return screen.begin(message.epoch);
    case "freeze":
      return screen.freeze(message.epoch);
    case "thaw":
      return screen.thaw(message.epoch, message.lead, message.until);
    case "toast":
      return toast(message.words);
    case "state":
      session.paused = message.paused;
      session.rewinding = message.rewinding;
      session.saved = message.saved;
      drawSaved();
      $("filming").hidden = !message.filming;
      document.body.classList.toggle("paused", message.paused);
      $("b-pause").setAttribute("aria-label", message.paused ? "Go on" : "Pause");
      return say();
    case "over":
      return over(REASONS[message.reason] ?? sentence(message.reason), message.files);
  }
}

function hello({ world, slots, film }) {
  Object.assign(session, { world, slots, film, lostSince: null });
  document.title = `${world.title} – Reverie`;
  screen.clear();
  screen.world(world);
  controls.world(world);
  $("d-film").hidden = !film;
  $("d-film").href = `/sessions/${session.id}/film.mp4`;
  $("d-session").href = `/sessions/${session.id}/session.jsonl`;
  drawKeys(controls);
  drawSlots();
  say();
  wakeUp();
  $("picture").focus({ preventScroll: true });
}

// ---- the picture

function onFrame(frame, now) {
  $("loading").hidden = true;
  count(frame, controls.seen(frame.input, now));
}

function paint() {
  if (!$("game").hidden) {
    controls.pollPads();
    screen.tick(performance.now());
    if (screen.holding !== session.holding) {
      session.holding = screen.holding;
      say();
    }
  }
  requestAnimationFrame(paint);
}

// ---- mouse and touch

const picture = $("picture");
picture.addEventListener("click", () => {
  if (session.world?.look && !coarse()) picture.requestPointerLock?.()?.catch?.(() => {});
});
addEventListener("mousemove", (event) => {
  if (document.pointerLockElement === picture) controls.moveMouse(event.movementX, event.movementY);
});
controls.touchPad($("move"), (x, y) => controls.walk(x, y, "touch"));
controls.touchPad($("look"), (x, y) => controls.stick(session.world?.look?.vertical ? -y : 0, x, "touch"));
addEventListener("contextmenu", (event) => !$("game").hidden && event.preventDefault());
addEventListener("resize", () => screen.fit());
addEventListener("dblclick", (event) => document.body.classList.contains("touch") && event.preventDefault());

// ---- begin

if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname); // it is in a cookie now
window.reverie = { screen, stats, session, controls }; // for those who want to look inside
listen(controls, screen);
watch(screen);
$("again").addEventListener("click", () => start.open().then(() => show("start")));
requestAnimationFrame(paint);
await connection.ask();
const kept = sessionStorage.getItem(KEPT);
const alive = kept && (await fetch(`/sessions/${kept}`).then((response) => (response.ok ? response.json() : null)).catch(() => null))?.playing;
if (alive) enter(kept);
else {
  sessionStorage.removeItem(KEPT);
  await start.open();
}
