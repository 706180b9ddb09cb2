"""Certificate authorities and certificates, made with the openssl program."""

import pathlib
import subprocess


def _openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


class Pair:
    """A certificate and its key, as PEM files."""

    def __init__(self, certificate, key):
        self.certificate, self.key = pathlib.Path(certificate), pathlib.Path(key)

    def pem(self):
        return self.certificate.read_bytes()

    def key_pem(self):
        return self.key.read_bytes()


class Authority(Pair):
    def __init__(self, folder, name="ca"):
        self.folder = pathlib.Path(folder)
        super().__init__(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2,
                 "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate)

    def issue(self, name, names="DNS:localhost,IP:127.0.0.1", expired=False):
        """A certificate for servers and clients, signed by this authority."""
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
                 "-keyout", pair.key, "-out", request)
        # A negative time ends it in the past.
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial",
                 "-days", -1 if expired else 2, "-extfile", extensions, "-out", pair.certificate)
        return pair
