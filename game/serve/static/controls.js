// Keyboard, mouse, touch and gamepad become one state of the controls, which is sent whenever it changes. The newest wins.

const NAMED = { Space: "space", ShiftLeft: "shift", ShiftRight: "shift", ControlLeft: "ctrl", ControlRight: "ctrl", Tab: "tab", Enter: "enter" };
const STICK = { pressed: 0.5, released: 0.35, dead: 0.15 };
const MOVE = { up: "w", down: "s", left: "a", right: "d" };
const MOUSE_MS = 12; // between two messages about the mouse

// A key by its place on the keyboard, so that WASD is the same cross on every layout.
export function keyOf(code) {
  if (/^Key[A-Z]$/.test(code)) return code[3].toLowerCase();
  if (/^Digit[0-9]$/.test(code)) return code[5];
  if (/^Arrow/.test(code)) return code.slice(5).toLowerCase();
  return NAMED[code] ?? "";
}

export class Controls {
  constructor(send) {
    this.send = send;
    this.keys = new Set(); // of the world
    this.sources = new Map(); // key -> who holds it
    this.sticks = new Map(); // source -> [pitch, yaw]
    this.mouse = [0, 0];
    this.mouseAt = 0;
    this.timer = null;
    this.id = 0;
    this.press = null; // the oldest press not seen yet: {id, at}
    this.onChange = () => {};
  }

  world(world) {
    this.keys = new Set(world.keys.map(([key]) => key));
    this.looks = world.look !== null;
    this.sources.clear();
    this.sticks.clear();
    this.id = 0;
    this.press = null;
  }

  get held() {
    return [...this.sources.keys()];
  }

  get look() {
    let [pitch, yaw] = [0, 0];
    for (const [up, right] of this.sticks.values()) [pitch, yaw] = [pitch + up, yaw + right];
    return [clamp(pitch), clamp(yaw)];
  }

  down(key, source) {
    if (!this.keys.has(key)) return false;
    const holders = this.sources.get(key) ?? new Set();
    const fresh = holders.size === 0;
    holders.add(source);
    this.sources.set(key, holders);
    if (fresh) this.changed(true);
    return true;
  }

  up(key, source) {
    const holders = this.sources.get(key);
    if (!holders?.delete(source) || holders.size) return;
    this.sources.delete(key);
    this.changed(false);
  }

  stick(pitch, yaw, source) {
    if (!this.looks) return;
    const [before, right] = this.sticks.get(source) ?? [0, 0];
    if (Math.abs(before - pitch) < 0.01 && Math.abs(right - yaw) < 0.01) return;
    if (pitch || yaw) this.sticks.set(source, [pitch, yaw]);
    else this.sticks.delete(source);
    this.changed(!before && !right);
  }

  // A stick or pad that walks: each direction is a key that is pressed beyond one mark and released before another.
  walk(x, y, source) {
    const amounts = { up: -y, down: y, left: -x, right: x };
    for (const direction in amounts) {
      const name = `${source} ${direction}`;
      if (amounts[direction] > STICK.pressed) this.down(MOVE[direction], name);
      else if (amounts[direction] < STICK.released) this.up(MOVE[direction], name);
    }
  }

  moveMouse(right, down) {
    if (!this.looks || (!right && !down)) return;
    this.mouse = [this.mouse[0] + right, this.mouse[1] + down];
    const wait = this.mouseAt + MOUSE_MS - performance.now();
    if (wait <= 0) this.changed(true);
    else this.timer ??= setTimeout(() => this.changed(true), wait);
  }

  releaseAll() {
    if (!this.sources.size && !this.sticks.size) return;
    this.sources.clear();
    this.sticks.clear();
    this.mouse = [0, 0];
    this.changed(false);
  }

  changed(pressed) {
    clearTimeout(this.timer);
    this.timer = null;
    this.mouseAt = performance.now();
    this.id += 1;
    if (pressed) this.press ??= { id: this.id, at: this.mouseAt };
    const mouse = this.mouse.map((pixels) => Math.max(-10000, Math.min(10000, pixels)));
    this.send({ t: "in", id: this.id, keys: this.held.slice(0, 16), look: this.look, mouse });
    this.mouse = [0, 0];
    this.onChange();
  }

  // A frame made with input `id` is on screen: ms from the press behind it, if there is one.
  seen(id, now) {
    if (this.press === null || id < this.press.id) return null;
    const ms = now - this.press.at;
    this.press = null;
    return ms;
  }

  pollPads() {
    for (const pad of navigator.getGamepads?.() ?? []) {
      if (!pad?.connected) continue;
      const name = `pad ${pad.index}`;
      const cross = (a, b) => (pad.buttons[b]?.pressed ? 1 : 0) - (pad.buttons[a]?.pressed ? 1 : 0);
      this.walk(pad.axes[0] ?? 0, pad.axes[1] ?? 0, name);
      this.walk(cross(14, 15), cross(12, 13), `${name} cross`);
      const dead = (value = 0) => (Math.abs(value) < STICK.dead ? 0 : clamp(value));
      this.stick(-dead(pad.axes[3]), dead(pad.axes[2]), name);
    }
  }

  // A round pad under a finger; `use(x, y)` gets where it is, from -1 to 1, + is right and down.
  touchPad(element, use) {
    const knob = element.querySelector("i");
    let finger = null;
    const move = (event) => {
      if (event.pointerId !== finger) return;
      const box = element.getBoundingClientRect();
      let [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((part) => part * 2 - 1);
      const far = Math.hypot(x, y);
      if (far > 1) [x, y] = [x / far, y / far];
      knob.style.transform = `translate(${x * 60}%, ${y * 60}%)`;
      use(x, y);
    };
    const end = (event) => {
      if (event.pointerId !== finger) return;
      finger = null;
      element.classList.remove("held");
      knob.style.transform = "";
      use(0, 0);
    };
    element.addEventListener("pointerdown", (event) => {
      if (finger !== null) return;
      finger = event.pointerId;
      element.setPointerCapture(finger);
      element.classList.add("held");
      event.preventDefault();
      move(event);
    });
    element.addEventListener("pointermove", move);
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) element.addEventListener(name, end);
  }
}

function clamp(value) {
  return Math.max(-1, Math.min(1, value));
}
