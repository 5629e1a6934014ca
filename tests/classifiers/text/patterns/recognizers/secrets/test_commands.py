"""Passwords in the options of commands, and credentials of registries."""

from __future__ import annotations

import base64

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

ENCODED = base64.b64encode(b"user:pa55w0rd!").decode()
FOUND = [
    ("curl -u admin:Xk39!vwq22 https://jenkins.example.com/job/x", "Xk39!vwq22"),
    ("curl -sS -X POST --user 'ann:Xk39!vwq22' https://x", "Xk39!vwq22"),
    ("mysql -u root -pS3cretpw99 shop", "S3cretpw99"),
    ("mysql -u root -pythonS3cret99 shop", "ythonS3cret99"),
    ("sshpass -p 'Tr0ub4dor&3' ssh ann@host", "Tr0ub4dor&3"),
    ("redis-cli -h db -a Xk39vwq22 ping", "Xk39vwq22"),
    ("redis-cli -h db -a 3306:x99 ping", "3306:x99"),
    (f'{{"auths": {{"registry.example.com": {{"auth": "{ENCODED}"}}}}}}', ENCODED),
    (f"//registry.npmjs.org/:_auth={ENCODED}", ENCODED),
]
NOT_FOUND = [
    "mysql -u root -p shop; mysql --port=3306 -h db; mysqldump -u root -p$PASS x",
    "curl -u $USER:$TOKEN https://x; curl -u user:password https://x; curl -u <user>:<token> x",
    "curl https://x.example.com:8443/path -o out.json",
    "sshpass -p $PASS ssh ann@host",
    "docker run -d --name mysql -p3306:3306 x; docker run mysql -p127.0.0.1:3306:3306/tcp",
    "Drivers: mysql -python, mysql -perl. Then mysql -python3.11; mysql -port 3306; mysql -path.",
    "redis-cli with the -a option; the sshpass -p option; redis-cli warns of the -a flag.",
    '{"auth": "Z3JlZW4gYXBwbGVz"} basic-auth: enabled_now, "auth": "required"',
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("secrets", "PASSWORD", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("secrets", "PASSWORD", text) == []
