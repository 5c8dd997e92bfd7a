// What every part of the page uses: its elements and its words.

export const $ = (id) => document.getElementById(id);
export const coarse = () => matchMedia("(pointer: coarse)").matches; // a finger, not a mouse

export function element(name, words = "", className = "") {
  const made = document.createElement(name);
  made.textContent = words;
  if (className) made.className = className;
  return made;
}

export function sentence(words) {
  return words ? words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".") : "";
}

const ARROWS = { up: "↑", down: "↓", left: "←", right: "→" };

// What is written on a key of the world.
export const cap = (key) => ARROWS[key] ?? key.toUpperCase();
