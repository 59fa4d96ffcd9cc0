"""The layers hold: cluster <- w2sr <- launcher, and each heavy dependency has its doors."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAY_DOORS = {f"cluster/{name}.py" for name in ("session", "ray_replicas", "train_group", "ray_nodes", "ray_jobs")}
DEEPSPEED_DOORS = {f"w2sr/training/engine{part}.py" for part in ("", "_loading", "_sequence", "_weights")}
VLLM_DOORS = {"w2sr/teachers/vllm_engine.py", "w2sr/teachers/vllm_ban.py"}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write the full name"
            found.add((node.module or "").split(".")[0])
    return found


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def test_imports_go_one_way() -> None:
    forbidden = {"cluster": {"w2sr", "launcher"}, "w2sr": {"launcher"}}
    for package, others in forbidden.items():
        for path in sources(package):
            assert not imports_of(path) & others, f"{path.relative_to(ROOT)} imports {imports_of(path) & others}"


def test_ray_deepspeed_and_vllm_have_their_doors() -> None:
    for path in sources("cluster", "w2sr", "launcher"):
        name = str(path.relative_to(ROOT))
        assert "ray" not in imports_of(path) or name in RAY_DOORS, f"{name} imports ray"
        assert "deepspeed" not in imports_of(path) or name in DEEPSPEED_DOORS, f"{name} imports deepspeed"
        assert "vllm" not in imports_of(path) or name in VLLM_DOORS, f"{name} imports vllm"


def test_no_source_trusts_remote_code() -> None:
    for path in sources("cluster", "w2sr", "launcher"):
        assert "trust_remote_code=True" not in path.read_text(), path


def test_schema_and_status_come_without_torch_ray_or_transformers() -> None:
    code = (
        "import sys, launcher.cli, w2sr.config, w2sr.status; w2sr.config.PipelineConfig.model_json_schema();"
        "sys.exit(', '.join(sorted({'torch', 'ray', 'transformers', 'deepspeed'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_parser_is_built_without_any_heavy_import() -> None:
    code = (
        "import sys; from launcher.cli import build_parser; build_parser();"
        "sys.exit(', '.join(sorted({'pydantic', 'yaml', 'numpy', 'pyarrow', 'torch'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
