"""Passwords behind a name."""

from __future__ import annotations

import pytest

from tests.classifiers.text.patterns.recognizers.tables import values

FOUND = [
    ("password = hunter2secret done", "hunter2secret"),
    ('"password": "(23qQj%mLn"', "(23qQj%mLn"),
    ("the password 8DynWVnO and thanks", "8DynWVnO"),
    ("- **passwd**: nC2IQAyS57bVN", "nC2IQAyS57bVN"),
    ("id,passwd,w2Z9dI4BDk76gyqJ,x", "w2Z9dI4BDk76gyqJ"),
    ("пароль: Xk9!qw3z7Lp", "Xk9!qw3z7Lp"),
    ("密码：Xk9!qw3z7Lp", "Xk9!qw3z7Lp"),
    ("?password=Xk9qw3z7Lp&page=2", "Xk9qw3z7Lp"),
    ("api_key: 'a1B2c3d4e5f6'", "a1B2c3d4e5f6"),
    # values that begin with a star, look like a reference or a call, or repeat characters
    ("My password is *h3QkWzt7Lm now", "*h3QkWzt7Lm"),
    ("**Password:** **h3QkWzt7Lm**", "h3QkWzt7Lm"),
    ("db_password: %(4*%BmTL7g)Z and", "%(4*%BmTL7g)Z"),
    ("the passwd $(K4gGJn*8Cy) and", "$(K4gGJn*8Cy)"),
    ("- **password**: KDhG(b+v))4FJ17q", "KDhG(b+v))4FJ17q"),
    ("4711|password|4W8WlWgl|base", "4W8WlWgl"),
    ("the db_password JHj(0Kdv8DZ$. And", "JHj(0Kdv8DZ$"),
    ("| db_password | YcXMqg_k(MzT4uxk2 |", "YcXMqg_k(MzT4uxk2"),
    ('"password": "$(AB)nHe&v_4ptuRF6t"', "$(AB)nHe&v_4ptuRF6t"),
    ("Server=db;Password=Yukon900!;Encrypt=true", "Yukon900!"),
    ("AccountKey=Eby8vdM02xNOcqFlqUwJ==;EndpointSuffix=core.x", "Eby8vdM02xNOcqFlqUwJ=="),
]
NOT_FOUND = [
    "`tokenizationId`: 'f865288c97ca4913887373728b8dfc4c',",
    'LLM_SECRET_NAME = "NEXUS-GPT4-API-KEY"',
    "tokenId: 8f2kd93kfk20dk and secret_name = my-app-12ab34",
    "ACCESS_TOKEN_URL=auth2.example.com/x1y2, api_key_id: K9x8w7v6u5",
    "tokenizer: gpt2-medium-355m",
    "arn:aws:secretsmanager:us-west-2:123456789012:secret:MyTestSecret-Ca8JGt",
    '{"password": "[PASSWORD_1]"}',
    "password: [PASSWORD_12345678]",
    "api_key = STRIPE_KEY_2",
    "password = get_password(user1)",
    "SELECT password FROM users",
    "token: str = None; api_key=API_KEY",
    "Your password: required.",
    'secret: "placeholder_value"',
    "pwd=$HOME/src",
    "password=${DB_PASSWORD1}",
    'password = os.environ["X1"]',
    '"NextToken": "cY1W3eTFvoB0cH7YrKVudI4Gb0"',
    "password: ********",
    "secretName: my-app-tls",
    "password=$(pass show mail)",
    "PASSWORD=$(base64 -d secret1)",
    "password = '%(password1)s'",
    "password = $(PASS_1)",
    "password = make_password(length=12)",
    "password = derivedKey(salt, 2**14",
    "password = Fernet(key1)",
    "password: settings.getSecret(name1",
]


@pytest.mark.parametrize(("text", "value"), FOUND)
def test_it_is_found_as_a_whole(text: str, value: str) -> None:
    assert values("secrets", "PASSWORD", text) == [value]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_resembles_it_is_left_alone(text: str) -> None:
    assert values("secrets", "PASSWORD", text) == []
