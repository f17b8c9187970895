from pathlib import Path

from mlimg.runtime.execute import child_command, child_environment
from mlimg.runtime.prepare import PreparedModel

PREPARED = PreparedModel(Path("/models/digits"), None, "/models", 0, 0.0, cache_hit=False)


def test_g12_fetch_credentials_do_not_reach_the_server() -> None:
    canaries = {
        "AWS_SECRET_ACCESS_KEY": "1",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "2",
        "AZURE_CLIENT_SECRET": "3",
        "GOOGLE_APPLICATION_CREDENTIALS": "4",
        "DOCKER_CONFIG": "5",
        "REGISTRY_AUTH_FILE": "6",
        "NETRC": "7",
        "HF_TOKEN": "8",
    }
    child = child_environment({**canaries, "PATH": "/bin", "OMP_NUM_THREADS": "2"}, PREPARED)
    assert child == {"PATH": "/bin", "OMP_NUM_THREADS": "2", "MLIMG_MODEL_DIR": "/models/digits"}


def test_a_credential_that_the_server_needs_is_kept_by_name() -> None:
    environ = {
        "HF_TOKEN": "1",
        "AWS_REGION": "2",
        "AWS_SECRET_ACCESS_KEY": "3",
        "MLIMG_KEEP_ENV": "HF_TOKEN, AWS_REGION",
    }
    child = child_environment(environ, PREPARED)
    assert child["HF_TOKEN"] == "1"
    assert child["AWS_REGION"] == "2"
    assert "AWS_SECRET_ACCESS_KEY" not in child


def test_the_command_learns_where_the_model_is() -> None:
    command = ["llama-server", "--model={model_dir}/m.gguf", "--port", "{port}", "--alias", "{model_name}", "{other}"]
    command.append("--host={host}")
    assert child_command(command, PREPARED, {"PORT": "9000"}) == [
        "llama-server",
        "--model=/models/digits/m.gguf",
        "--port",
        "9000",
        "--alias",
        "model",
        "{other}",
        "--host=0.0.0.0",
    ]
    assert child_command(["{host}"], PREPARED, {"HOST": "127.0.0.1"}) == ["127.0.0.1"]
