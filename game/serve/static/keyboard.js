// Keys that the page shows: caps that light up, pads for thumbs, the help.

import { $, cap, coarse, element } from "./page.js";
import { session } from "./session.js";

const PAGE_KEYS = [
  ["P", "pause, go on"],
  [".", "one block"],
  ["Enter", "start again"],
  ["Backspace", "rewind (hold)"],
  ["F2", "save"],
  ["F4", "load"],
  ["Shift 1–9", "slot to save in"],
  ["F1", "this help"],
  ["F3", "numbers"],
  ["F8", "screenshot"],
  ["F11", "full screen"],
  ["Esc", "free the mouse"],
];
const TOUCH_HELP = [
  ["Pause", "and go on"],
  ["Rewind", "as long as it is held"],
  ["Bars", "numbers"],
  ["Corners", "full screen"],
  ["Lines", "save, load, take it with you"],
];

// For the world that is played, and whoever plays it.
export function drawKeys(controls) {
  drawCaps(controls);
  drawPads(controls);
  drawHelp();
}

function drawCaps(controls) {
  $("caps").replaceChildren(
    ...session.world.keys.map(([key, does]) => {
      const made = element("kbd", cap(key));
      made.dataset.key = key;
      made.title = does;
      return made;
    }),
  );
  $("stick").hidden = session.world.look === null;
  controls.onChange = () => {
    const held = new Set(controls.held);
    for (const made of $("caps").children) made.classList.toggle("held", held.has(made.dataset.key));
    const [pitch, yaw] = controls.look;
    $("stick").firstElementChild.style.transform = `translate(${yaw * 100}%, ${-pitch * 100}%)`;
  };
}

function drawPads(controls) {
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
      const button = element("button", cap(key));
      button.addEventListener("pointerdown", () => controls.down(key, "touch"));
      for (const name of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(name, () => controls.up(key, "touch"));
      return button;
    }),
  );
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
  const keys = world.keys.map(([key, does]) => [cap(key), does]);
  if (world.look) keys.push(["Mouse", world.look.vertical ? "look (click the picture)" : "left and right (click)"]);
  keys.push(["Gamepad", world.look ? "walk, look" : "walk"]);
  const pads = [["Left pad", "walk"], ["Right pad", world.look?.vertical ? "look" : "left and right"]].filter((_, right) => !right || world.look);
  $("help-world").replaceChildren(...(touch ? pads : keys).map(row));
  $("help-page").replaceChildren(...(touch ? TOUCH_HELP : PAGE_KEYS).map(row));
}
