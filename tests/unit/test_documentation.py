"""Every command, template and example is documented, and every example renders."""

import re
from pathlib import Path

import pytest
import typer.main

from mlimg.cli.app import application
from mlimg.material import check_server
from mlimg.plan import Platform, resolve
from mlimg.record import local_store
from mlimg.render import render
from mlimg.spec.load import load_spec
from mlimg.spec.schema import Pattern
from mlimg.template import Template, builtin_templates
from tests.support.plans import base_image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("examples/**/*.md"),
]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/mlimg.yaml"))


def commands() -> dict[str, set[str]]:
    """Each command's options, as a user writes them."""
    group = typer.main.get_command(application())
    assert isinstance(group, typer.main.TyperGroup)
    return {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in group.commands.items()
    }


def test_every_command_is_in_the_readme_and_nothing_else_is() -> None:
    documented = set(re.findall(r"^\| `mlimg (\w+)", README, flags=re.MULTILINE))
    assert documented == set(commands())


def test_every_option_that_the_readme_shows_is_there() -> None:
    known = set().union(*commands().values())
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(re.findall(r"mlimg .*", README))))
    assert shown, "the pattern finds nothing any more"
    assert shown <= known | {"--preserve-digests"}, shown - known


@pytest.mark.parametrize("template", builtin_templates(), ids=lambda template: template.name)
def test_every_template_has_a_page_and_is_in_the_readme(template: Template) -> None:
    page = (ROOT / "docs" / "templates" / f"{template.name}.md").read_text(encoding="utf-8")
    assert f"`{template.name}`" in README
    for option in template.options:
        assert f"`{option}`" in page


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_plans_and_renders(example: Path) -> None:
    loaded = load_spec(example)
    checked = check_server(loaded)
    plan = resolve(
        loaded.spec,
        checked.material,
        Platform("linux", "amd64"),
        pattern=Pattern.IN_IMAGE,
        local_store=local_store(example),
        origins=loaded.origins,
    )
    assert render(plan.server, base_image()).dockerfile.startswith("#")
    assert (example / "README.md").is_file()
    assert f"({example.name}/)" in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
