// The one connection to the server: opened, lost, found again.

import { $ } from "./page.js";
import { readable } from "./pictures.js";
import { session } from "./session.js";
import { say } from "./words.js";

const RETRY_SECONDS = 55; // the server waits for a minute

export class Connection {
  // `hear(message)` and `receive(frame)` get what comes; `lost()` is told when it
  // has ended and is tried again, `over(words, files)` when it is not, or no more.
  constructor(hear, receive, lost, over) {
    Object.assign(this, { hear, receive, lost, over });
    this.kinds = ["jpeg", "webp"]; // of frames, that this browser reads
  }

  async ask() {
    this.kinds = await readable();
  }

  open() {
    const address = new URL(`/sessions/${session.id}/play`, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    address.searchParams.set("format", this.kinds.join(","));
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.hear(JSON.parse(data)) : this.receive(data));
    socket.onclose = (event) => {
      if (session.socket === socket) this.gone(event.code, event.reason);
    };
    session.socket = socket;
  }

  close() {
    const socket = session.socket;
    session.socket = null;
    socket?.close();
    return socket !== null;
  }

  // H.264 that this browser said it reads, and does not: come back as one that never did.
  withoutVideo() {
    this.kinds = this.kinds.filter((kind) => !kind.startsWith("h264"));
    if (this.close()) this.open(); // else the next connection will say so
  }

  // The connection has ended: by intent, or it is tried again for as long as the server waits.
  async gone(code, reason) {
    session.socket = null;
    if (code === 1000 && session.world && !$("over").hidden) return;
    if (code === 4001) return this.over("This session is now played in another tab.", null);
    if (code === 1008) return this.over(`The server has ended the connection: ${reason}.`, null);
    this.lost();
    session.lostSince ??= performance.now();
    const seconds = (performance.now() - session.lostSince) / 1000;
    let state = "silent";
    try {
      const response = await fetch(`/sessions/${session.id}`);
      state = !response.ok ? "gone" : (await response.json()).playing ? "waits" : "gone";
    } catch {
      state = "silent";
    }
    if (state === "gone" || seconds > RETRY_SECONDS) return this.over("The session is gone: a page that leaves is waited for one minute.", state === "gone" ? {} : null);
    say();
    setTimeout(() => this.open(), state === "waits" ? 300 : 1500);
  }
}
