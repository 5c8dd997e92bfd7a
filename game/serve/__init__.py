"""Worlds in the browser: one model, many players, each with a session of its own. `docs/SERVE.md` has the protocol and the limits."""
