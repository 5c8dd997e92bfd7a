// Reverie in the browser: connects the page's parts with each other and with the server.

import { Controls, keyOf } from "./controls.js";
import { Graph } from "./graph.js";
import { readable } from "./pictures.js";
import { Screen } from "./screen.js";
import { StartPage, element } from "./start.js";

const $ = (id) => document.getElementById(id);
const KEPT = "reverie-session"; // in this tab's memory: a reload goes on with its session
const ASLEEP = "reverie-asleep"; // it was paused because nobody saw it
const RETRY_SECONDS = 55; // the server waits for a minute
const TOAST_MS = 4000;
let kinds = ["jpeg", "webp"]; // of frames, that this browser reads

const session = { id: null, socket: null, world: null, paused: false, slot: 1, slots: 9, saved: [], film: false, lostSince: null };
const stats = { made: null, press: null, presses: [], lost: 0, blocks: 0, frame: 0 };
const send = (message) => {
  if (session.socket?.readyState === WebSocket.OPEN) session.socket.send(JSON.stringify(message));
};
const command = (what) => send({ t: "do", do: what, slot: session.slot });
const controls = new Controls(send);
const screen = new Screen($("picture"), send, onFrame, withoutVideo);
const graph = new Graph($("graph"));
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
  Object.assign(stats, { made: null, press: null, presses: [], lost: 0, blocks: 0, frame: 0 });
  $("menu").hidden = true;
  show("game");
  loading("opening the world", null);
  connect();
}

function connect() {
  const address = new URL(`/sessions/${session.id}/play`, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  address.searchParams.set("format", kinds.join(","));
  const socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : screen.receive(data));
  socket.onclose = (event) => {
    if (session.socket === socket) gone(event.code, event.reason);
  };
  session.socket = socket;
}

// H.264 that this browser said it reads, and does not: come back as one that never did.
function withoutVideo() {
  kinds = kinds.filter((kind) => !kind.startsWith("h264"));
  const socket = session.socket;
  if (!socket) return; // the next connection will say so
  session.socket = null;
  socket.close();
  connect();
}

// The connection has ended: by intent, or it is tried again for as long as the server waits.
async function gone(code, reason) {
  session.socket = null;
  if (code === 1000 && session.world && !$("over").hidden) return;
  if (code === 4001) return over("This session is now played in another tab.", null);
  if (code === 1008) return over(`The server has ended the connection: ${reason}.`, null);
  screen.freeze(screen.epoch);
  session.lostSince ??= performance.now();
  const seconds = (performance.now() - session.lostSince) / 1000;
  let state = "silent";
  try {
    const response = await fetch(`/sessions/${session.id}`);
    state = !response.ok ? "gone" : (await response.json()).playing ? "waits" : "gone";
  } catch {
    state = "silent";
  }
  if (state === "gone" || seconds > RETRY_SECONDS) return over("The session is gone: a page that leaves is waited for one minute.", state === "gone" ? {} : null);
  say();
  setTimeout(connect, state === "waits" ? 300 : 1500);
}

function over(words, files) {
  const socket = session.socket;
  session.socket = null;
  socket?.close();
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

const REASONS = {
  left: "You have left. What was played can be taken along for ten minutes.",
  idle: "Nobody has pressed anything for a long time, so the session was ended.",
  vanished: "The page was away for more than a minute.",
};

function hello({ world, slots, film }) {
  Object.assign(session, { world, slots, film, lostSince: null });
  document.title = `${world.title} – Reverie`;
  screen.clear();
  screen.world(world);
  controls.world(world);
  $("d-film").hidden = !film;
  $("d-film").href = `/sessions/${session.id}/film.mp4`;
  $("d-session").href = `/sessions/${session.id}/session.jsonl`;
  drawCaps();
  drawPads();
  drawSlots();
  drawHelp();
  say();
  wakeUp();
  $("picture").focus({ preventScroll: true });
}

// ---- the picture

function onFrame(frame, now) {
  $("loading").hidden = true;
  stats.made = frame.made;
  stats.lost = frame.lost;
  stats.block = frame.block;
  stats.frame = frame.frame;
  if (frame.index === 0) stats.blocks += 1;
  const ms = controls.seen(frame.input, now);
  if (ms !== null) {
    stats.press = ms;
    stats.presses.push(ms);
    if (stats.presses.length > 500) stats.presses.shift();
  }
}

function paint(now) {
  if (!$("game").hidden) {
    controls.pollPads();
    screen.tick(performance.now());
    if (screen.holding !== paint.held) {
      paint.held = screen.holding;
      say();
    }
  }
  requestAnimationFrame(paint);
}

setInterval(() => {
  if ($("game").hidden || !session.world) return;
  graph.add({ fps: screen.rate, made: stats.made, press: stats.press });
  if ($("hud").hidden) return;
  graph.draw(session.world.fps);
  $("n-fps").textContent = `${screen.rate.toFixed(1)} of ${session.world.fps}`;
  $("n-made").textContent = stats.made === null ? "–" : `${stats.made.toFixed(0)} ms`;
  $("n-press").textContent = stats.press === null ? "–" : `${stats.press.toFixed(0)} ms`;
  $("n-lost").textContent = `${screen.underruns}, ${stats.lost}`;
  $("n-block").textContent = screen.block === null ? "–" : `${stats.block}, ${stats.frame}`;
}, 500);

// ---- what the page says

function say() {
  let words = "";
  if (!session.socket && session.lostSince) words = "Connection lost – trying again";
  else if (session.rewinding) words = session.rewinding.replace(/ {2,}/, " – ");
  else if (session.paused) words = coarse() ? "Paused" : "Paused – P goes on, . plays one block";
  else if (screen.holding) words = "Waiting for the next block";
  $("banner").textContent = words;
  $("banner").hidden = !words;
}

function loading(what, part) {
  $("loading").hidden = false;
  $("loading-title").textContent = session.world?.title ?? "Reverie";
  $("loading-what").textContent = what;
  $("loading-bar").style.width = part ? `${Math.round(part * 100)}%` : "";
  $("loading-bar").classList.toggle("unknown", !part);
}

function toast(words) {
  const line = element("p", words);
  $("toasts").append(line);
  while ($("toasts").children.length > 4) $("toasts").firstChild.remove();
  setTimeout(() => line.remove(), TOAST_MS);
}

function sentence(words) {
  return words ? words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".") : "";
}

const coarse = () => matchMedia("(pointer: coarse)").matches;
const ARROWS = { up: "↑", down: "↓", left: "←", right: "→" };

function drawCaps() {
  $("caps").replaceChildren(
    ...session.world.keys.map(([key, does]) => {
      const cap = element("kbd", ARROWS[key] ?? key.toUpperCase());
      cap.dataset.key = key;
      cap.title = does;
      return cap;
    }),
  );
  $("stick").hidden = session.world.look === null;
  controls.onChange = () => {
    const held = new Set(controls.held);
    for (const cap of $("caps").children) cap.classList.toggle("held", held.has(cap.dataset.key));
    const [pitch, yaw] = controls.look;
    $("stick").firstElementChild.style.transform = `translate(${yaw * 100}%, ${-pitch * 100}%)`;
  };
}

function drawPads() {
  const touch = coarse() || navigator.maxTouchPoints > 0;
  const { look } = session.world;
  const keys = session.world.keys.map(([key]) => key);
  const looks = new Set(Object.keys(look?.keys ?? {}));
  const walks = keys.some((key) => "wasd".includes(key) && !looks.has(key));
  document.body.classList.toggle("touch", touch);
  $("move").hidden = !touch || !walks;
  $("look").hidden = !touch || look === null;
  const others = keys.filter((key) => !"wasd".includes(key) && !looks.has(key));
  $("extra").hidden = !touch || !others.length;
  $("extra").replaceChildren(
    ...others.map((key) => {
      const button = element("button", ARROWS[key] ?? key.toUpperCase());
      button.addEventListener("pointerdown", () => controls.down(key, "touch"));
      for (const name of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(name, () => controls.up(key, "touch"));
      return button;
    }),
  );
}

function drawSlots() {
  session.slot = Math.min(session.slot, session.slots);
  drawSaved();
  $("slots").replaceChildren(
    ...Array.from({ length: session.slots }, (_, index) => {
      const button = element("button", String(index + 1));
      button.setAttribute("role", "radio");
      button.setAttribute("aria-checked", session.slot === index + 1);
      button.addEventListener("click", () => chooseSlot(index + 1));
      return button;
    }),
  );
}

// What can be taken along of the chosen slot.
function drawSaved() {
  $("d-save").hidden = !session.saved.includes(session.slot);
  savedGame($("d-save"), session.slot);
}

function savedGame(link, slot) {
  link.href = `/sessions/${session.id}/saves/${slot}`;
  link.download = "";
  link.replaceChildren("Saved game", element("span", `of slot ${slot}`));
  return link;
}

// A saved game from a file takes the chosen slot, and is loaded from there.
async function bring(file) {
  $("saved-file").value = "";
  if (!file) return;
  const slot = session.slot;
  let problem = "The server did not take the file";
  try {
    const response = await fetch(`/sessions/${session.id}/saves/${slot}`, { method: "PUT", body: file });
    if (response.ok) return send({ t: "do", do: "load", slot });
    problem = (await response.json()).error ?? problem;
  } catch {
    // refused in the middle of it, or nobody is there
  }
  toast(sentence(problem));
}

function chooseSlot(slot) {
  session.slot = slot;
  drawSlots();
  toast(slot > session.slots ? `There is room for ${session.slots} saved games here` : `Slot ${session.slot}`);
}

function drawHelp() {
  const { world } = session;
  $("help-title").textContent = world.title;
  $("help-about").textContent = world.about;
  const row = ([key, does]) => {
    const line = element("tr");
    line.append(element("th", key), element("td", does));
    return line;
  };
  const touch = document.body.classList.contains("touch");
  const keys = world.keys.map(([key, does]) => [ARROWS[key] ?? key.toUpperCase(), does]);
  if (world.look) keys.push(["Mouse", world.look.vertical ? "look (click the picture)" : "left and right (click)"]);
  keys.push(["Gamepad", world.look ? "walk, look" : "walk"]);
  const pads = [["Left pad", "walk"], ["Right pad", world.look?.vertical ? "look" : "left and right"]].filter((_, right) => !right || world.look);
  $("help-world").replaceChildren(...(touch ? pads : keys).map(row));
  $("help-page").replaceChildren(...(touch ? TOUCH_HELP : PAGE_KEYS.map(([, key, does]) => [key, does])).map(row));
}

// ---- commands

const PAGE_KEYS = [
  ["pause", "P", "pause, go on"],
  ["step", ".", "one block"],
  ["restart", "Enter", "start again"],
  ["rewind", "Backspace", "rewind (hold)"],
  ["save", "F2", "save"],
  ["load", "F4", "load"],
  ["slot", "Shift 1–9", "slot to save in"],
  ["help", "F1", "this help"],
  ["hud", "F3", "numbers"],
  ["shot", "F8", "screenshot"],
  ["full", "F11", "full screen"],
  ["", "Esc", "free the mouse"],
];
const TOUCH_HELP = [
  ["Pause", "and go on"],
  ["Rewind", "as long as it is held"],
  ["Bars", "numbers"],
  ["Corners", "full screen"],
  ["Lines", "save, load, take it with you"],
];
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

let rewindKey = null;
addEventListener("keydown", (event) => {
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
});
addEventListener("keyup", (event) => {
  controls.up(keyOf(event.code), "keyboard");
  if (event.code === rewindKey) [rewindKey] = [null, command("rewind end")];
});

function letGo() {
  controls.releaseAll();
  if (rewindKey) [rewindKey] = [null, command("rewind end")];
}
addEventListener("blur", letGo);
document.addEventListener("visibilitychange", () => {
  if ($("game").hidden || !session.world) return;
  letGo();
  if (document.hidden && !session.paused) {
    sessionStorage.setItem(ASLEEP, session.id); // a reload hides the page too, and is to go on afterwards
    command("pause"); // what nobody sees needs no pictures
  } else {
    wakeUp();
  }
});

function wakeUp() {
  if (document.hidden || sessionStorage.getItem(ASLEEP) !== session.id) return;
  sessionStorage.removeItem(ASLEEP);
  command("resume");
}

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

for (const name of ["pause", "hud", "help", "full"]) $(`b-${name}`).addEventListener("click", () => (DO[name](), picture.focus({ preventScroll: true })));
for (const name of ["save", "load", "restart", "step", "shot"]) $(`m-${name}`).addEventListener("click", DO[name]);
const back = $("b-rewind");
back.addEventListener("pointerdown", (event) => (back.setPointerCapture(event.pointerId), command("rewind")));
for (const name of ["pointerup", "pointercancel"]) back.addEventListener(name, () => command("rewind end"));
$("b-menu").addEventListener("click", () => {
  $("menu").hidden = !$("menu").hidden;
  $("b-menu").setAttribute("aria-expanded", !$("menu").hidden);
});
$("m-bring").addEventListener("click", () => $("saved-file").click());
$("saved-file").addEventListener("change", () => bring($("saved-file").files[0]));
$("m-leave").addEventListener("click", () => command("leave"));
$("again").addEventListener("click", () => start.open().then(() => show("start")));

// ---- begin

if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname); // it is in a cookie now
window.reverie = { screen, stats, session, controls }; // for those who want to look inside
requestAnimationFrame(paint);
kinds = await readable();
const kept = sessionStorage.getItem(KEPT);
const alive = kept && (await fetch(`/sessions/${kept}`).then((response) => (response.ok ? response.json() : null)).catch(() => null))?.playing;
if (alive) enter(kept);
else {
  sessionStorage.removeItem(KEPT);
  await start.open();
}
