"""What a command loads before it says anything. Names, and no times."""

import json
import subprocess
import sys
from importlib.metadata import version

HEAVY = {"torch", "peft", "transformers", "trl", "datasets", "accelerate", "numpy", "yaml", "matplotlib"}
COMMANDS = (
    *(
        "init",
        "train",
        "eval",
        "compare",
        "merge",
        "convert",
        "inspect",
        "estimate",
        "bench train",
        "generate",
        "chat",
        "demo",
    ),
    "activate",
)


def loaded(code: str) -> set[str]:
    code = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_nothing_heavy():
    code = (
        "from typer.testing import CliRunner\nfrom bone_peft.cli.main import app\n"
        f"for line in {['', *COMMANDS]}:\n"
        "    result = CliRunner().invoke(app, [*line.split(), '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
    )
    found = loaded(code)
    assert "typer" in found
    assert not found & HEAVY


def test_version():
    code = "from bone_peft.cli import main\nimport sys\nsys.argv = ['bone', '--version']\nmain.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"bone-peft {version('bone-peft')}"


def test_train_speaks_before_it_loads():
    code = (
        "from bone_peft.cli import main, train\n"
        "class Told(BaseException): pass\n"
        "class Screen:\n"
        "    def print(self, line): assert line.startswith('Starting'); raise Told\n"
        "train.console = Screen\n"
        "try: train.train(None)\n"
        "except Told: pass\n"
        "else: raise SystemExit(1)\n"
    )
    assert not loaded(code) & HEAVY


def test_no_library_draws_a_bar_of_its_own():
    code = (
        "import io, os\n"
        "os.environ.pop('TQDM_DISABLE', None)\n"
        "from bone_peft.cli.process import quiet\n"
        "quiet()\n"
        "from tqdm.auto import tqdm\n"
        "out = io.StringIO()\n"
        "list(tqdm(range(3), file=out))\n"
        "assert not out.getvalue(), out.getvalue()\n"
    )
    assert "tqdm" in loaded(code)


def test_deepspeed_says_no_more_than_its_errors():
    code = (
        "import io, logging\n"
        "from bone_peft.cli.process import quiet\n"
        "quiet()\n"
        "out, logger = io.StringIO(), logging.getLogger('DeepSpeed')\n"
        "logger.addHandler(logging.StreamHandler(out))\n"
        "logger.setLevel(logging.WARNING)  # as its import does\n"
        "logger.warning('no GPU')\n"
        "logger.error('broken')\n"
        "assert out.getvalue() == 'broken\\n', out.getvalue()\n"
    )
    assert "logging" in loaded(code)
