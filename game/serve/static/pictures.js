// Bytes to pictures: JPEG and WebP one by one, H.264 block by block with WebCodecs.

// Codecs as WebCodecs calls them: High and High 4:4:4 Predictive, level 4.0.
const CODECS = { h264: "avc1.640028", "h264-444": "avc1.F40028" };

// The kinds of frames that this browser reads. WebCodecs is missing in pages that came over plain HTTP from another machine.
export async function readable() {
  const kinds = ["jpeg", "webp"];
  for (const [kind, codec] of Object.entries(CODECS)) {
    const answer = await window.VideoDecoder?.isConfigSupported(config(codec)).catch(() => null);
    if (answer?.supported) kinds.push(kind);
  }
  return kinds;
}

// In Annex B, and so without a description. What its colours mean stands in the stream.
function config(codec) {
  return { codec, optimizeForLatency: true };
}

export class Pictures {
  // `onBroken()` is called when the decoder of H.264 has given up.
  constructor(onBroken) {
    this.onBroken = onBroken;
    this.video = null;
  }

  // A picture that can be drawn and closed, of the bytes that came under that header. Rejects when it cannot be read.
  async decode(data, { kind, index, count }) {
    if (!CODECS[kind]) return decodeImage(data, `image/${kind}`);
    if (this.video?.kind !== kind) {
      this.video?.close();
      this.video = new Video(kind, () => {
        this.video = null;
        this.onBroken();
      });
    }
    return this.video.decode(data, index === 0, index === count - 1);
  }
}

// WebCodecs decodes from memory; where it is missing a Blob takes a way through the browser's other process.
async function decodeImage(data, type) {
  if (!window.ImageDecoder) return createImageBitmap(new Blob([data], { type }));
  const decoder = new ImageDecoder({ data, type });
  try {
    return (await decoder.decode()).image;
  } finally {
    decoder.close();
  }
}

class Video {
  constructor(kind, onBroken) {
    this.kind = kind;
    this.onBroken = onBroken;
    this.count = 0;
    this.closed = false;
    this.waiting = new Map(); // what is to be told of a frame, by its timestamp: at most what the server sends ahead
    this.decoder = new VideoDecoder({ output: (frame) => this.take(frame), error: () => this.fail() });
    this.decoder.configure(config(CODECS[kind]));
  }

  decode(data, first, last) {
    return new Promise((resolve, reject) => {
      const timestamp = (this.count += 1);
      this.waiting.set(timestamp, { resolve, reject });
      try {
        this.decoder.decode(new EncodedVideoChunk({ type: first ? "key" : "delta", timestamp, data }));
        if (last) this.finish(timestamp);
      } catch {
        this.fail(); // bytes that do not begin as they should, or a decoder that has closed itself
      }
    });
  }

  // Nothing is held back at the end of a block: the next begins with a key frame. What has not come by then never will.
  finish(timestamp) {
    this.decoder.flush().then(() => {
      for (const [other, { reject }] of this.waiting) {
        if (other > timestamp) continue;
        this.waiting.delete(other);
        reject(new Error("no picture came of it"));
      }
    }, () => this.fail());
  }

  // A copy, for a decoder may have few pictures of its own and wait until they are given back.
  async take(frame) {
    const told = this.waiting.get(frame.timestamp);
    this.waiting.delete(frame.timestamp);
    try {
      const bitmap = told && (await createImageBitmap(frame));
      told?.resolve(bitmap);
    } catch (error) {
      told.reject(error);
    } finally {
      frame.close();
    }
  }

  fail() {
    if (this.close()) this.onBroken();
  }

  // Whether it was open.
  close() {
    const open = !this.closed;
    this.closed = true;
    if (this.decoder.state !== "closed") this.decoder.close();
    for (const { reject } of this.waiting.values()) reject(new Error("the decoder has ended"));
    this.waiting.clear();
    return open;
  }
}
