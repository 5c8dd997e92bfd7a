// The session this page plays, and what goes to the server.

export const session = {
  id: null,
  socket: null,
  world: null,
  paused: false,
  rewinding: "", // in words
  holding: false, // the next block is late
  slot: 1,
  slots: 9,
  saved: [], // slots with a saved game in them
  film: false,
  lostSince: null, // ms; while the connection is lost
};

export const send = (message) => {
  if (session.socket?.readyState === WebSocket.OPEN) session.socket.send(JSON.stringify(message));
};

export const command = (what, slot = session.slot) => send({ t: "do", do: what, slot });
