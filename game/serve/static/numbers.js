// What F3 shows: frame rate, time to make a block, press to picture, and a minute of each.

import { Graph } from "./graph.js";
import { $ } from "./page.js";
import { session } from "./session.js";

const PRESSES = 500; // the newest that are kept
const none = () => ({ made: null, press: null, presses: [], lost: 0, blocks: 0, frame: 0 });

export const stats = none();
export const forget = () => Object.assign(stats, none());

// A frame has been shown; `press`: ms from the press it is the first to show, or null.
export function count(frame, press) {
  stats.made = frame.made;
  stats.lost = frame.lost;
  stats.block = frame.block;
  stats.frame = frame.frame;
  if (frame.index === 0) stats.blocks += 1;
  if (press === null) return;
  stats.press = press;
  stats.presses.push(press);
  if (stats.presses.length > PRESSES) stats.presses.shift();
}

export function watch(screen) {
  const graph = new Graph($("graph"));
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
}
