"""What `reverie` can do, a module each: `add_options(parser)` and `run(args) -> exit status`."""
