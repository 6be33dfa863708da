"""A small OpenID provider: discovery, authorisation code with PKCE, ID tokens, keys."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from flask import Flask, Response, jsonify, redirect, request
from joserfc import jwt
from joserfc.jwk import RSAKey
from werkzeug.datastructures import MultiDict

CLIENT = "chest-ct"
SECRET = "between the two of us"


@dataclass
class Provider:
    """What the provider says of whoever comes; each test may change it.

    `forged` replaces claims of the ID token, or its key with ``{"key": ...}``.
    """

    issuer: str = ""
    claims: dict[str, Any] = field(
        default_factory=lambda: {"sub": "42", "preferred_username": "grey", "roles": ["doctor"]}
    )
    forged: dict[str, Any] = field(default_factory=dict)
    denies: bool = False
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1"}))
    codes: dict[str, MultiDict[str, str]] = field(default_factory=dict)

    def app(self) -> Flask:
        app = Flask(__name__)
        app.add_url_rule("/.well-known/openid-configuration", view_func=self.discovery)
        app.add_url_rule("/authorize", view_func=self.authorize)
        app.add_url_rule("/token", view_func=self.token, methods=["POST"])
        app.add_url_rule("/keys", view_func=self.keys)
        return app

    def discovery(self) -> Response:
        return jsonify(
            issuer=self.issuer,
            authorization_endpoint=f"{self.issuer}/authorize",
            token_endpoint=f"{self.issuer}/token",
            jwks_uri=f"{self.issuer}/keys",
            response_types_supported=["code"],
            id_token_signing_alg_values_supported=["RS256"],
        )

    def keys(self) -> Response:
        return jsonify(keys=[self.key.as_dict(private=False)])

    def authorize(self) -> Any:
        """Vouch for the person without asking, as for one who is signed in there."""
        asked = request.args
        assert asked["client_id"] == CLIENT
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        if self.denies:
            return redirect(f"{asked['redirect_uri']}?error=access_denied&state={asked['state']}")
        code = secrets.token_urlsafe()
        self.codes[code] = asked
        return redirect(f"{asked['redirect_uri']}?code={code}&state={asked['state']}")

    def token(self) -> Any:
        """Give an ID token for a code, once, to who has the secret and the verifier."""
        given = request.authorization
        asked = self.codes.pop(request.form["code"], None)
        verifier = request.form.get("code_verifier", "")
        if (
            given is None
            or (given.username, given.password) != (CLIENT, SECRET)
            or asked is None
            or create_s256_code_challenge(verifier) != asked["code_challenge"]
            or request.form["redirect_uri"] != asked["redirect_uri"]
        ):
            return jsonify(error="invalid_grant"), 400
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 60,
            "nonce": asked["nonce"],
            **self.claims,
            **self.forged,
        }
        key = claims.pop("key", self.key)
        signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims, key)
        return jsonify(access_token="a", token_type="Bearer", expires_in=60, id_token=signed)
