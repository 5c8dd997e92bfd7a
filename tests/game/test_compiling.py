"""Play begins with the layers as they are, while the compiler works; the change comes between two blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from engine import Action, World, WorldError, compile_world, fingerprint
from game.cli import main
from game.player import Game
from game.window import Window
from tests.long import LONG
from tests.tiny_world import write_tiny_world

BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.skipif(not LONG, reason="a C++ compiler for a minute: REVERIE_LONG=1"))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_world(tmp_path_factory.mktemp("compiling"), change=lambda settings: settings.update(fps=100))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def game(window: Window, tiny: Path) -> Iterator[Callable[..., Game]]:
    games: list[Game] = []

    def make(compiler, seed: int = 1) -> Game:
        world = World.load(tiny)
        games.append(Game(window, world.config, lambda report: world.session(seed), compiler=compiler))
        games[-1].world.start()
        return games[-1]

    yield make
    for played in games:
        assert played.world.stop() and played.world.error is None
    for thread in threading.enumerate():
        if thread.name == "reverie-compiler":
            thread.join()


def turn_until(game: Game, true: Callable[[], object], seconds: float = 300) -> None:
    end = time.perf_counter() + seconds
    while not true():
        game._turn()
        assert game.world.error is None and time.perf_counter() < end, "it never happened"
        time.sleep(0.005)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thread_compiles_while_another_one_plays(tiny: Path, backend: str) -> None:
    """The blocks meanwhile are those of a world that nobody compiles, bit by bit; those afterwards make no graph of their own."""
    played, alone = World.load(tiny), World.load(tiny)
    ours, theirs = played.session(3), alone.session(3)
    walk = [Action(frozenset(keys)) for keys in ("w", "wl", "", "a", "sj", "d")]
    for block in range(6):
        assert (ours.step(walk[block]) == theirs.step(walk[block])).all()
    made: list = []
    threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(threads)
        made.append(compile_world(played, decoder=True, backend=backend))

    compiler = threading.Thread(target=work)
    compiler.start()
    meanwhile = 0
    while compiler.is_alive():
        assert (ours.step(walk[meanwhile % 6]) == theirs.step(walk[meanwhile % 6])).all()
        meanwhile += 1
    compiler.join()
    assert made and meanwhile  # how many blocks there is time for is the machine's affair
    assert fingerprint(played)["compile"] is False and ours.rewindable > 6
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2 and not counters["graph_break"]  # of the layers, of the decoder

    ours.adopt(made[0])
    assert fingerprint(played)["compile"] is True and ours.rewindable == 0
    with pytest.raises(WorldError, match="cannot rewind"):
        ours.rewind()
    for action in walk:
        frames = ours.step(action)
        assert np.abs(frames.astype(int) - theirs.step(action)).max() <= 2
    ours.rewind(3)
    again = [ours.step(action) for action in walk[3:]]
    assert (again[-1] == frames).all()  # from the change on, rewinding gives the same bits as ever
    assert counters["stats"]["unique_graphs"] == graphs


def test_the_game_changes_over_and_says_so(game) -> None:
    go_on = threading.Event()

    def compiler(world: World, report):
        assert go_on.wait(60)
        return compile_world(world, report, backend="eager")

    play = game(compiler)
    turn_until(play, lambda: play.presenter.block is not None and play.presenter.block.index >= 2)
    session = play.world.session
    assert not session.world.compiled and play._hud_state(play.presenter.block).layers.startswith("being compiled, 0%, ")
    assert any("Compiling meanwhile" in toast for toast in play.window.toasts())
    go_on.set()
    turn_until(play, lambda: play.compiling.words == "compiled")
    assert session.world.compiled and any("Compiled: from here" in toast for toast in play.window.toasts())
    block = play.presenter.block.index
    turn_until(play, lambda: play.presenter.block.index >= block + 3)
    assert play._hud_state(play.presenter.block).layers == "compiled" and play.presenter.epoch == 0


def test_a_compiler_that_fails_leaves_the_game_as_it_is(game) -> None:
    def compiler(world: World, report):
        raise WorldError("the layers cannot be compiled here: no C++ compiler")

    play = game(compiler)
    turn_until(play, lambda: play.compiling.words == "not compiled")
    assert any("no C++ compiler" in toast for toast in play.window.toasts())
    turn_until(play, lambda: play.presenter.block is not None and play.presenter.block.index >= 2)
    assert not play.world.session.world.compiled


def test_what_is_kept_is_compiled_first(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """With a session file every block is to be computed again: there the compiler is waited for, in the window too."""

    def no_compiler(*_, **__):
        raise WorldError("no compiler today")

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("engine.compile_world", no_compiler)  # of the game
    monkeypatch.setattr("engine.world.compile_world", no_compiler)
    words = ["--world", str(tiny), "--compile", "--blocks", "2"]
    assert main(words) == 0
    for kept in (["--session", "walk.jsonl"], ["--headless"], ["--record", "walk.mp4"]):
        assert main([*words, *kept]) == 2
    assert capsys.readouterr().err.count("reverie: no compiler today") == 3
