// The picture: takes frames off the wire and shows each when it is due. The counterpart of game/presenter.py.

import { Pictures } from "./pictures.js";

const HEADER = 32;
const KINDS = { 1: "jpeg", 2: "webp", 3: "h264", 4: "h264-444" };
const SHARP = 4; // the picture is drawn up to so many times larger before the browser scales it
const RATE_SPAN = 2000; // ms that the frame rate is measured over

export function readHeader(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength <= HEADER || view.getUint16(0) !== 0x5256 || view.getUint8(2) !== 1) return null;
  const kind = view.getUint8(3);
  return {
    kind: KINDS[kind & 127],
    still: kind > 127,
    epoch: view.getUint32(4, true),
    block: view.getUint32(8, true),
    frame: view.getUint32(12, true),
    input: view.getUint32(16, true),
    made: view.getUint32(20, true) / 1000, // ms
    lost: view.getUint32(24, true),
    hold: view.getUint16(28, true), // ms
    index: view.getUint8(30),
    count: view.getUint8(31),
  };
}

export class Screen {
  // `send` sends a message to the server; `onFrame(frame, now)` is called for each frame shown; `onBroken()` when H.264 cannot be read.
  constructor(canvas, send, onFrame, onBroken) {
    this.canvas = canvas;
    this.send = send;
    this.onFrame = onFrame;
    this.pictures = new Pictures(onBroken);
    this.context = canvas.getContext("2d", { alpha: false });
    this.fps = 16;
    this.epoch = 0;
    this.clear();
    this.underruns = 0;
    this.bitmap = null; // on screen
    this.times = [];
  }

  world(world) {
    this.fps = world.fps;
    this.width = world.width;
    this.height = world.height;
    this.fit();
  }

  // Everything that was to come is forgotten; the picture stays until there is another.
  clear() {
    for (const frame of this.queue ?? []) frame.bitmap?.close();
    this.queue = [];
    this.origin = null; // ms at which frame 0 was due; null: the schedule stands still
    this.frozen = false;
    this.until = null;
    this.block = null; // on screen, of this epoch
    this.next = 0; // number of the frame that comes next
    this.holding = false; // a block is late
    this.times = [];
  }

  begin(epoch) {
    this.epoch = epoch;
    this.clear();
  }

  freeze(epoch) {
    if (epoch !== this.epoch) return;
    this.frozen = true;
    this.until = null;
    this.origin = null;
    this.holding = false;
    this.times = [];
  }

  // Go on; with `until` only to the end of that block. `lead`: ms that the next block will need.
  thaw(epoch, lead, until) {
    if (epoch !== this.epoch) return;
    this.frozen = false;
    this.until = until;
    if (this.block === null) return;
    const rest = this.queue.filter((frame) => frame.block === this.block).length;
    const ready = this.queue.some((frame) => frame.block > this.block);
    const hold = until !== null || ready ? 0 : Math.max(0, lead - rest * this.period);
    this.origin = performance.now() + hold - this.next * this.period;
    this.at(this.block, this.next, hold, false);
  }

  get period() {
    return 1000 / this.fps;
  }

  async receive(buffer) {
    const frame = readHeader(buffer);
    if (frame === null) return;
    const current = frame.epoch === this.epoch;
    if (current && !frame.still) this.queue.push(frame);
    try {
      frame.bitmap = await this.pictures.decode(buffer.slice(HEADER), frame);
      frame.ready = performance.now();
    } catch {
      this.queue = this.queue.filter((other) => other !== frame);
    }
    if (frame.still) {
      if (frame.bitmap && frame.epoch === this.epoch && this.block === null) this.draw(frame.bitmap);
    } else {
      if (frame.index === 0) this.firstAt = performance.now();
      if (frame.index === frame.count - 1) {
        const spread = Math.round(Math.min(60000, performance.now() - (this.firstAt ?? performance.now())));
        this.send({ t: "got", epoch: frame.epoch, block: frame.block, spread });
      }
      if (frame.epoch !== this.epoch) frame.bitmap?.close();
    }
  }

  // Called for every picture the browser paints.
  tick(now) {
    if (this.frozen) return;
    let shown = null;
    while (this.queue.length) {
      const frame = this.queue[0];
      if (!frame.bitmap) break;
      if (!this.isDue(frame, now)) break;
      this.queue.shift();
      if (shown) shown.bitmap.close(); // its time was over before the browser came to paint it
      shown = frame;
      this.next = frame.frame + 1;
      if (this.until !== null && frame.block >= this.until && frame.index === frame.count - 1) {
        this.freeze(this.epoch);
        this.send({ t: "frozen", epoch: this.epoch });
        break;
      }
    }
    if (shown) {
      this.holding = false;
      this.draw(shown.bitmap);
      this.times.push(now);
      while (now - this.times[0] > RATE_SPAN) this.times.shift();
      this.onFrame(shown, now);
    } else if (this.origin !== null && this.block !== null && now > this.origin + (this.next + 1) * this.period) {
      this.holding = true;
    }
  }

  isDue(frame, now) {
    const fresh = frame.block !== this.block;
    if (!fresh) return now >= this.due(frame) - 2;
    if (this.origin === null) { // the first of an epoch, or after a pause: at once, whatever the clock
      this.origin = now + frame.hold - frame.frame * this.period;
      this.show(frame, frame.hold, false);
      return true;
    }
    if (now < this.due(frame) - 2) return false;
    const late = frame.ready > this.due(frame);
    if (late) this.origin = now - frame.frame * this.period;
    const underrun = late && this.until === null; // a single block comes when it comes
    this.underruns += underrun ? 1 : 0;
    this.show(frame, this.due(frame) - now, underrun);
    return true;
  }

  due(frame) {
    return this.origin + frame.frame * this.period;
  }

  show(frame, wait, late) {
    this.block = frame.block;
    this.at(frame.block, frame.frame, wait, late);
  }

  at(block, frame, wait, late) {
    const ms = Math.max(-1000, Math.min(10000, Math.round(wait * 10) / 10));
    this.send({ t: "at", epoch: this.epoch, block, frame, in: ms, late });
  }

  get rate() {
    const [first, last] = [this.times[0], this.times.at(-1)];
    return this.times.length < 2 ? 0 : ((this.times.length - 1) * 1000) / (last - first);
  }

  draw(bitmap) {
    if (this.bitmap !== bitmap) this.bitmap?.close();
    this.bitmap = bitmap;
    this.context.imageSmoothingEnabled = true;
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(bitmap, 0, 0, this.canvas.width, this.canvas.height);
  }

  // As many pixels as the place on screen can use.
  fit() {
    if (!this.width) return;
    const room = Math.min((innerWidth * devicePixelRatio) / this.width, (innerHeight * devicePixelRatio) / this.height);
    const scale = Math.max(1, Math.min(SHARP, Math.ceil(room)));
    const [width, height] = [this.width * scale, this.height * scale];
    if (this.canvas.width === width && this.canvas.height === height) return;
    [this.canvas.width, this.canvas.height] = [width, height];
    if (this.bitmap) this.draw(this.bitmap);
  }

  // The picture as it came, without what the screen does to it: a canvas of the world's size.
  picture() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.width, this.height];
    if (this.bitmap) canvas.getContext("2d").drawImage(this.bitmap, 0, 0);
    return canvas;
  }
}
