"""``whowhen live``: a microphone, a file at its own speed or a pipe; turns while they are spoken."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.errors import user_errors, warn
from cli.whowhen.options import DeviceOption, EnrolOption, RunOption, WeightsOption, opened

if TYPE_CHECKING:
    from rich.console import RenderableType

    from diarizer.live import Live, Update


@user_errors()
def live(
    audio: Annotated[
        str | None,
        typer.Argument(metavar="[FILE|-]", help="A file, or - for a pipe (WAV, or --rate) \\[the microphone]."),
    ] = None,
    run: RunOption = None,
    latency: Annotated[
        float | None, typer.Option(help="Seconds that an answer waits, 0.16 to 10: more is surer \\[1.04].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for NAME.rttm and NAME.jsonl, a line as a turn closes \\[none].")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="A file as fast as it goes, not at its own speed.")] = False,
    rate: Annotated[
        int | None,
        typer.Option(
            min=1000, max=384_000, help="The pipe carries mono PCM of 16 bits at this rate, without a header."
        ),
    ] = None,
    microphone: Annotated[
        str | None,
        typer.Option(help="Number or name of the microphone; python -m sounddevice lists them \\[the system's]."),
    ] = None,
    enrol: EnrolOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    certify: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prove on a file's first minute that sizes of pushes change nothing and such; exit code 1 if not.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every update as a line of JSON on stdout and nothing else there.")
    ] = False,
) -> None:
    """Who speaks, while they speak. Ctrl-C ends it and closes what is open.

    [bold]Examples[/bold]

        whowhen live

        whowhen live meeting.wav --latency 0.32 --out told

        arecord -f S16_LE -r 16000 -c 1 -t raw | whowhen live - --rate 16000 --json

        whowhen live --certify meeting.wav --run runs/cascade
    """
    _fit_together(audio, fast, rate, microphone, certify, out)
    asked = latency if latency is not None else 1.04
    made = opened(run, weights, device, enrol)
    if certify is not None:
        _certify(certify, made, asked, as_json)
        return
    from diarizer.live.recorded import Recorded
    from diarizer.live.sources import Microphone, of_file, of_stdin

    engine = made.live(asked)
    if audio == "-":
        if sys.stdin.isatty():
            raise ValueError("-: standard input is a terminal; pipe sound into it (… | whowhen live -)")
        sound: Any = of_stdin(sys.stdin.buffer, rate)
    elif audio is not None:
        sound = of_file(Path(audio), fast)
    else:
        sound = Microphone(microphone)
    name = {None: time.strftime("live-%Y%m%d-%H%M%S"), "-": time.strftime("stdin-%Y%m%d-%H%M%S")}.get(audio)
    recorded = Recorded(out, name or Path(audio or "").stem) if out is not None else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with recorded or nullcontext(), _View(engine, as_json) as view:
        seconds = 0.0

        def take(updates: list[Update]) -> None:
            if recorded is not None:
                recorded.take(updates)
            view.take(updates, seconds)

        try:
            for samples, rate_hz in sound:
                seconds += len(samples) / rate_hz
                take(engine.push(samples, rate_hz))
        except KeyboardInterrupt:
            pass
        take(engine.finalize())
    if lost_s := getattr(sound, "lost_s", 0.0):
        warn(f"{lost_s:.1f} s of sound were lost: this machine is slower than speech")
    if recorded is not None:
        print(f"{seconds:.1f} s heard; {', '.join(map(str, recorded.paths))}", file=sys.stderr)


def _fit_together(
    audio: str | None, fast: bool, rate: int | None, microphone: str | None, certify: Path | None, out: Path | None
) -> None:
    """Refuse options that would go unheard."""
    if certify is not None and (audio is not None or out is not None):
        raise ValueError(f"--certify hears {certify} and nothing else, and writes nothing: leave out FILE and --out")
    sound = "a pipe" if audio == "-" else "the microphone" if audio is None and certify is None else "a file"
    for option, given, of in (
        ("--rate", rate is not None, "a pipe"),
        ("--microphone", microphone is not None, "the microphone"),
        ("--fast", fast, "a file"),
    ):
        if given and sound != of:
            raise ValueError(f"{option} is of {of}, but {sound} is to be heard; leave it out")


class _View:
    """Turns on a terminal as they change; elsewhere a line a turn that is over; with --json, updates."""

    def __init__(self, engine: Live, as_json: bool) -> None:
        self._engine, self._json = engine, as_json
        self._screen = None
        self._began = time.monotonic()
        if not as_json and sys.stdout.isatty():
            from rich.live import Live as Screen

            self._screen = Screen(refresh_per_second=8, transient=True)

    def __enter__(self) -> _View:
        if self._screen:
            self._screen.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._screen:
            self._screen.stop()

    def take(self, updates: list[Update], seconds: float) -> None:
        """Show what is new after `seconds` of sound."""
        for update in updates:
            if self._json:
                print(json.dumps(update.json(), ensure_ascii=False), flush=True)
                continue
            for turn in update.final:
                line = f"{turn.start_s:8.2f} {turn.end_s:8.2f}  {turn.speaker}"
                if self._screen:
                    self._screen.console.print(line, highlight=False, markup=False, soft_wrap=True)
                else:
                    print(line, flush=True)
        if self._screen and updates:
            self._screen.update(self._picture(updates[-1], seconds))

    def _picture(self, update: Update, seconds: float) -> RenderableType:
        from rich.text import Text

        behind = max(0.0, time.monotonic() - self._began - seconds)
        latency_s = self._engine.algorithmic_latency_s
        text = Text(
            f"{seconds:8.1f} s heard, {behind:.1f} s behind, latency {latency_s:.2f} s\n",
            no_wrap=True,
            overflow="ellipsis",
        )
        for turn in update.partial:
            text.append(f"{turn.start_s:8.2f}        …  {turn.speaker}\n", style="bold")
        return text


def _certify(path: Path, made: Any, latency_s: float, as_json: bool) -> None:
    from diarizer.live.certificate import ALIKE, certify

    found = certify(made, path, latency_s)
    if as_json:
        print(json.dumps(found))
    else:
        said = {True: "the same", False: "DIFFERENT"}
        print(f"{path}: {found['heard_s']:g} s, {found['updates']} updates")
        print(f"pushes of 1 to 200,000 samples: {said[found['sizes']]}, byte for byte")
        print(f"saved, and gone on in another process: {said[found['process']]}, byte for byte")
        for name, apart in found["frames"].items():
            print(
                f"{name}: frames of the stream are the recording's but for {apart:.1e} of their deviation (at most {ALIKE:g})"
            )
        for name, apart in found["tap"].items():
            print(f"{name} as a running Moshi streams it, where a tap hears it: {apart:.1e}")
        print("holds" if found["holds"] else "DOES NOT HOLD")
    if not found["holds"]:
        raise SystemExit(1)
