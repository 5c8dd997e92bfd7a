// The first page: which world, from which picture, with which seed.

import { $, element } from "./page.js";

export class StartPage {
  // `play(query, file)` begins; it returns what is in the way, or nothing.
  constructor(play) {
    this.play = play;
    this.world = 0;
    this.start = 0; // number of a picture, or "own"
    this.file = null;
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("file").addEventListener("change", () => this.take($("file").files[0]));
    for (const name of ["dragover", "drop"]) {
      $("start").addEventListener(name, (event) => {
        event.preventDefault();
        if (name === "drop") this.take(event.dataTransfer.files[0]);
      });
    }
  }

  async open() {
    let found;
    try {
      const response = await fetch("/worlds");
      if (!response.ok) throw new Error((await response.text()).trim());
      found = await response.json();
    } catch (error) {
      this.problem(error.message.startsWith("401") ? "This link lacks its token. Open the whole link that the server printed." : "The server does not answer.");
      $("start").hidden = false;
      $("form").hidden = true;
      return;
    }
    this.worlds = found.worlds;
    this.limit = found.upload;
    const free = found.places - found.playing;
    $("places").textContent = free > 0 ? `${free} of ${found.places} places free` : "All places are taken";
    this.drawWorlds();
    this.drawStarts();
    $("start").hidden = false;
    $("play").disabled = false;
    $("play").focus({ preventScroll: true });
  }

  drawWorlds() {
    $("worlds").parentElement.hidden = false;
    $("worlds").replaceChildren(
      ...this.worlds.map((world, number) => {
        const card = choice("world", this.world === number, () => {
          if (this.world !== number) [this.world, this.start] = [number, this.file ? "own" : 0];
          this.drawWorlds();
          this.drawStarts();
        });
        card.append(element("strong", world.title), element("span", world.about), element("small", `${world.width} × ${world.height}, ${world.fps} frames a second`));
        return card;
      }),
    );
    $("seed").placeholder = String(this.worlds[this.world].seed ?? 0);
  }

  drawStarts() {
    const world = this.worlds[this.world];
    if (world.starts === 0) this.start = "own";
    const tiles = Array.from({ length: world.starts }, (_, number) => {
      const tile = choice("tile", this.start === number, () => this.choose(number));
      const picture = element("img");
      picture.src = `/worlds/${this.world}/starts/${number}`;
      picture.alt = `Start picture ${number + 1}`;
      tile.append(picture);
      return tile;
    });
    const own = choice("tile upload", this.start === "own", () => (this.file && this.start !== "own" ? this.choose("own") : $("file").click()));
    if (this.file) {
      const picture = element("img");
      picture.src = this.preview;
      picture.alt = "Your picture";
      own.append(picture, element("em", "yours"));
    } else {
      own.append(element("span", "+"), element("em", "a picture of yours"));
    }
    $("starts").replaceChildren(...tiles, own);
  }

  choose(start) {
    this.start = start;
    this.drawStarts();
  }

  take(file) {
    $("file").value = "";
    if (!file) return;
    if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) return this.problem("That is no picture that can be taken: choose a PNG, JPEG or WebP file.");
    if (file.size > this.limit) return this.problem(`That picture is too large; at most ${Math.floor(this.limit / 1e6)} MB are taken.`);
    this.problem("");
    if (this.preview) URL.revokeObjectURL(this.preview);
    this.file = file;
    this.preview = URL.createObjectURL(file);
    this.choose("own");
  }

  async submit() {
    const query = new URLSearchParams({ world: this.world, film: $("film").checked ? 1 : 0 });
    const seed = $("seed").value.trim();
    if (seed && !/^[0-9]{1,15}$/.test(seed)) return this.problem("A seed is a whole number.");
    if (seed) query.set("seed", seed);
    if (this.start === "own" && !this.file) return this.problem("Choose a picture to begin from.");
    if (this.start !== "own") query.set("start", this.start);
    this.problem("");
    $("play").disabled = true;
    this.problem(await this.play(query, this.start === "own" ? this.file : null));
    $("play").disabled = false;
  }

  problem(words) {
    $("problem").textContent = words ?? "";
    $("problem").hidden = !words;
  }
}

function choice(className, chosen, choose) {
  const button = element("button", "", `choice ${className}`);
  button.type = "button";
  button.setAttribute("role", "radio");
  button.setAttribute("aria-checked", chosen);
  button.addEventListener("click", choose);
  return button;
}
