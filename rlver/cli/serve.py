"""`rlver serve`: simulated users and trained policies as chat models."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

from rlver.cli.connect import AttemptsOption, CacheOption, ConcurrencyOption, Connections, RateOption, TimeoutOption
from rlver.cli.options import (
    PHRASING_HELP,
    DeviceOption,
    LanguageOption,
    PresetOption,
    ProfilesOption,
    SeedOption,
    UserTypeOption,
)
from rlver.core.errors import RlverError
from rlver.users.embedded.speech import Phrasing

TOKEN = "RLVER_SERVE_TOKEN"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("serve", rich_help_panel="Simulated users")(serve)


def serve(
    user: Annotated[
        str,
        typer.Option(
            "--user",
            metavar="SPEC",
            help='The simulated user, served as the model "sentient": embedded, vanilla, challenging, '
            "openai:MODEL@BASE_URL or any:PROVIDER/MODEL. none serves policies only.",
            autocompletion=lambda: ["embedded", "vanilla", "challenging", "none", "openai:", "any:"],
        ),
    ] = "embedded",
    user_type: UserTypeOption = "vanilla",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="Folder of a policy, served as the model with the name of the folder; repeat it for several.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Addresses that others can reach need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. 0 takes a free one.")] = 8377,
    language: LanguageOption = "en",
    preset: PresetOption = "sage",
    profiles: ProfilesOption = None,
    phrasing: Annotated[Phrasing, typer.Option(help=PHRASING_HELP)] = "heldout",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    concurrency: ConcurrencyOption = 32,
    per_minute: RateOption = None,
    timeout: TimeoutOption = 90.0,
    attempts: AttemptsOption = 6,
    cache: CacheOption = None,
) -> None:
    """Serve a simulated user and trained policies through the OpenAI API.

    The simulated user is the chat model "sentient". Your first message is a greeting, and the answer is what the user
    says. Each further message is judged as a reply. The field "rlver" of each answer holds the emotion and the stop
    reason. POST /v1/sessions starts a dialogue with a given profile, and GET /v1/sessions/ID shows it. If the
    environment holds RLVER_SERVE_TOKEN, every request must carry it as a bearer token.

    Examples:

      rlver serve --port 8377

      rlver serve --user challenging --policy runs/demo/turn/policy --language zh

      curl localhost:8377/v1/sessions -X POST
    """
    import uvicorn

    from rlver.core.emotion import get_preset
    from rlver.evaluation.profiles import load_profiles
    from rlver.llm import Limits
    from rlver.policies.load import load_policy
    from rlver.policies.prompts import system_prompt
    from rlver.serve.app import make_app
    from rlver.serve.sessions import Sessions
    from rlver.users.load import load_user

    token = os.environ.get(TOKEN, "").strip()
    if not token and not _loopback(host):
        raise RlverError(f"--host {host}: others could use this server; set {TOKEN} to a token that they need.")
    if user == "human":
        raise RlverError("--user human: a person cannot be served; use embedded or a model behind an endpoint.")
    limits = Limits(concurrency=concurrency, per_minute=per_minute, timeout=timeout, attempts=attempts)
    connections = Connections(limits, cache)
    sessions = None
    if user != "none":
        simulated_user = load_user(user, language, user_type=user_type, phrasing=phrasing, connect=connections.connect)
        sessions = Sessions(simulated_user, load_profiles(language, profiles), get_preset(preset), seed)
    generators = {}
    for spec in policy or ():
        from rlver.policies.local import LocalPolicy
        from rlver.serve.completions import Generator

        loaded = load_policy(spec, language, device=device)
        if not isinstance(loaded, LocalPolicy):
            raise RlverError(f"--policy {spec}: only the folder of a model can be served.")
        name = Path(spec.removeprefix("hf:")).resolve().name
        generators[name] = Generator(loaded, system_prompt(language, loaded.think))
    if sessions is None and not generators:
        raise RlverError("--user none: nothing is left to serve; add a --policy.")
    connections.check()
    server = uvicorn.Server(
        uvicorn.Config(make_app(sessions, generators, token), host=host, port=port, log_level="warning")
    )
    names = [*(["sentient"] if sessions else []), *generators]
    socket = server.config.bind_socket()
    bound = socket.getsockname()[1]
    where = f"[{host}]" if ":" in host else host
    typer.echo(f"Serving {', '.join(names)} at http://{where}:{bound}/v1 (Ctrl-C to stop).")
    server.run(sockets=[socket])


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
