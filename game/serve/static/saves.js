// Slots, and saved games that are taken along or brought.

import { $, element, sentence } from "./page.js";
import { command, session } from "./session.js";
import { toast } from "./words.js";

export function drawSlots() {
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
export function drawSaved() {
  $("d-save").hidden = !session.saved.includes(session.slot);
  savedGame($("d-save"), session.slot);
}

export function savedGame(link, slot) {
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
    if (response.ok) return command("load", slot);
    problem = (await response.json()).error ?? problem;
  } catch {
    // refused in the middle of it, or nobody is there
  }
  toast(sentence(problem));
}

export function chooseSlot(slot) {
  session.slot = slot;
  drawSlots();
  toast(slot > session.slots ? `There is room for ${session.slots} saved games here` : `Slot ${session.slot}`);
}

$("m-bring").addEventListener("click", () => $("saved-file").click());
$("saved-file").addEventListener("change", () => bring($("saved-file").files[0]));
