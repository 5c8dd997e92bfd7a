// What the page says over the picture: a banner, short messages, how far the loading is.

import { $, coarse, element } from "./page.js";
import { session } from "./session.js";

const TOAST_MS = 4000;

export function say() {
  let words = "";
  if (!session.socket && session.lostSince) words = "Connection lost – trying again";
  else if (session.rewinding) words = session.rewinding.replace(/ {2,}/, " – ");
  else if (session.paused) words = coarse() ? "Paused" : "Paused – P goes on, . plays one block";
  else if (session.holding) words = "Waiting for the next block";
  $("banner").textContent = words;
  $("banner").hidden = !words;
}

export function loading(what, part) {
  $("loading").hidden = false;
  $("loading-title").textContent = session.world?.title ?? "Reverie";
  $("loading-what").textContent = what;
  $("loading-bar").style.width = part ? `${Math.round(part * 100)}%` : "";
  $("loading-bar").classList.toggle("unknown", !part);
}

export function toast(words) {
  const line = element("p", words);
  $("toasts").append(line);
  while ($("toasts").children.length > 4) $("toasts").firstChild.remove();
  setTimeout(() => line.remove(), TOAST_MS);
}
