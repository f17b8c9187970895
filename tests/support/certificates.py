"""Certificates for servers: a sound one, and one for each thing that can be wrong with one."""

import ssl
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

Kind = Literal["sound", "expired", "not yet valid", "wrong name", "self-signed"]


@dataclass(frozen=True)
class Authority:
    """Signs certificates; `bundle` is what clients are to trust."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        """A new one, which keeps its files in `folder`."""
        (folder / "index.txt").touch()
        (folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca = our\n[our]\n"
            f"database = {folder}/index.txt\nnew_certs_dir = {folder}\nrand_serial = yes\ndefault_md = sha256\n"
            f"policy = any\nunique_subject = no\ncertificate = {folder}/ca.pem\nprivate_key = {folder}/ca.key\n"
            "[any]\ncommonName = supplied\n"
        )
        authority = cls(folder)
        authority._self_signed("ca", "basicConstraints=critical,CA:TRUE")
        return authority

    @property
    def bundle(self) -> Path:
        """The authority's own certificate."""
        return self.folder / "ca.pem"

    def context(self, kind: Kind, address: str = "127.0.0.1") -> ssl.SSLContext:
        """What a server with such a certificate speaks TLS with."""
        name = kind.replace(" ", "-")
        if kind == "self-signed":
            self._self_signed(name, f"subjectAltName=IP:{address}")
        else:
            day = {"expired": -2, "not yet valid": 1}.get(kind, -1)
            self._sign(name, "DNS:elsewhere.example" if kind == "wrong name" else f"IP:{address}", day)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context

    def _self_signed(self, name: str, extension: str) -> None:
        self._openssl("req", "-x509", *self._key(name), "-days", "9", "-addext", extension, "-out", f"{name}.pem")

    def _sign(self, name: str, subject: str, day: int) -> None:
        """A certificate that begins so many days from now, an hour early, and lasts one day, or ten from yesterday."""
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
        start = datetime.now(UTC) + timedelta(days=day, hours=-1 if day < 0 else 1)
        end = start + timedelta(days=1 if day == -2 else 10)
        self._openssl("req", *self._key(name), "-out", f"{name}.csr")
        dates = [f"{moment:%Y%m%d%H%M%SZ}" for moment in (start, end)]
        self._openssl(
            "ca", "-batch", "-config", "ca.cnf", "-in", f"{name}.csr", "-out", f"{name}.pem", "-notext",
            "-extfile", f"{name}.ext", "-startdate", dates[0], "-enddate", dates[1],
        )  # fmt: skip

    @staticmethod
    def _key(name: str) -> list[str]:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
        return [*key, "-subj", f"/CN={name}"]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)
