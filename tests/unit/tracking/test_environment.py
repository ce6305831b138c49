"""MLflow's own variables, and addresses with something in them that nobody else should see."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import ssl
import threading
from pathlib import Path

import pytest

from panollava.tracking.location import absolute_uri, connection_uri, experiment_name, has_secret, without_secret
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.store import check_answers

SECRETS = [
    "http://user:secret@host:5000",
    "https://secret@host",
    "HTTP://user:secret@host",
    "http://user:sec/secret@host",
    "http://host:5000?token=secret",
    "http://host:5000/#secret",
    "postgresql://user:secret@host/db",
    "postgres://user:secret@host/db",
    "postgresql://host/db?password=secret&sslmode=require",
    "mssql+pyodbc:///?odbc_connect=PWD%3Dsecret",
]
OPEN = [
    "http://host:5000/some/path",
    "postgresql://user@host/db?sslmode=require",
    "sqlite:////home/a@b/c:d/mlflow.db",
    "databricks://profile",
]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")] + ["MLFLOW_EXPERIMENT_NAME"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):  # those that the code sets go again as well
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("uri", [*SECRETS, "user:secret@host:5000", "http:/user:secret@host"])
def test_an_address_with_a_secret_is_refused_and_not_shown(uri) -> None:
    with pytest.raises(ValueError, match=r"tracking\.uri") as refused:
        absolute_uri(uri)
    assert "secret" not in str(refused.value)
    assert uri not in SECRETS or "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in str(refused.value)


@pytest.mark.parametrize("uri", OPEN)
def test_an_address_without_one_is_taken(uri) -> None:
    assert not has_secret(uri)
    assert absolute_uri(uri) == uri


@pytest.mark.parametrize("uri", SECRETS)
def test_nothing_secret_is_left_of_one(uri) -> None:
    assert "secret" not in without_secret(uri)
    assert not has_secret(without_secret(uri))


def test_the_secret_in_mlflows_variable_reaches_the_server_and_nothing_else(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:a%40b@host:5000")
    assert absolute_uri() == "http://host:5000"
    assert connection_uri("http://host:5000") == "http://host:5000"
    assert [os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD")] == ["user", "a@b"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@host/db?sslmode=require")
    public = absolute_uri()
    assert public == "postgresql://user@host/db?sslmode=require"
    assert connection_uri(public) == "postgresql://user:secret@host/db?sslmode=require"
    assert connection_uri("postgresql://user@other/db") == "postgresql://user@other/db"


def test_mlflows_variables_count_where_the_config_names_nothing(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///its.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "its own")
    assert (absolute_uri(), experiment_name(None)) == (absolute_uri("sqlite:///its.db"), "its own")
    assert (experiment_name("mine"), absolute_uri("sqlite:///mine.db")) == ("mine", f"sqlite:///{tmp_path}/mine.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(ValueError, match=r"^MLFLOW_TRACKING_URI='./mlruns' cannot store runs"):
        absolute_uri()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that only this test knows, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now.replace(year=9999)
    )
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    files = folder / "server.crt", folder / "server.key"
    files[0].write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(*form))
    return files


class Answer(http.server.BaseHTTPRequestHandler):
    """Knows one user."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic dXNlcjpwYXNz"
        body = json.dumps({"error_code": "UNAUTHENTICATED", "message": "who?"}).encode()
        self.send_response(200 if known or self.path == "/health" else 401)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Says nothing."""


@pytest.fixture
def https(tmp_path):
    """A server with a certificate of its own: its address, and that certificate."""
    chain, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    server = http.server.ThreadingHTTPServer(("localhost", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}", chain
    server.shutdown()
    server.server_close()


def test_a_private_certificate_is_taken_where_mlflows_variables_say_so(https, monkeypatch) -> None:
    uri, chain = https
    with pytest.raises(ConnectionError, match=r"MLFLOW_TRACKING_SERVER_CERT_PATH .*MLFLOW_TRACKING_INSECURE_TLS"):
        check_answers(uri)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(chain))
        check_answers(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    check_answers(uri)


def test_a_server_that_asks_who_is_there_is_answered_with_the_names_of_the_variables(
    https, tmp_path, monkeypatch
) -> None:
    uri, chain = https
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(chain))
    with pytest.raises(PermissionError, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        MlflowTracker(uri=uri, outbox=tmp_path).start()
