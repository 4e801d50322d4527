"""`omnirouter completion`: commands and options for the shell's Tab key."""

from __future__ import annotations

import argparse
from typing import Literal

from omnirouter.cli.options import DONE

BASH = """\
_omnirouter() {{
  local words="{commands}" word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -gt 1 ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    case "$word" in -*) ;; *) words="" ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _omnirouter omnirouter
"""


def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print a script that completes commands and options in a shell.

    The script holds names only: nothing is run when the Tab key is pressed.

    Examples:
        omnirouter completion bash >> ~/.bashrc
        omnirouter completion zsh >> ~/.zshrc
        omnirouter completion fish > ~/.config/fish/completions/omnirouter.fish

    Args:
        shell: bash, zsh or fish.
    """
    from omnirouter.cli import COMMANDS, load_command, summary
    from omnirouter.cli.parser import build_parser

    options = {name: _options(build_parser(name, load_command(name))) for name in COMMANDS}
    if shell == "fish":
        lines = []
        for name, own in options.items():
            about = summary(name).replace("'", "\\'")
            lines.append(
                f"complete -c omnirouter -n __fish_use_subcommand -f -a {name} -d '{about}'"
            )
            seen = f"'__fish_seen_subcommand_from {name}'"
            lines += [f"complete -c omnirouter -n {seen} -l {o.lstrip('-')}" for o in own]
        print("\n".join(lines))
        return DONE
    cases = "\n".join(f'      {name}) words="{" ".join(own)}" ;;' for name, own in options.items())
    if shell == "zsh":
        print("autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit")
    print(BASH.format(commands=" ".join(COMMANDS), cases=cases), end="")
    return DONE


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Long names of the options that help shows."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    names = [name for action in shown for name in action.option_strings]
    return [name for name in names if name.startswith("--") and not name.endswith("+")]
