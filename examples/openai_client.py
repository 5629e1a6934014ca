"""Query a running `guard serve` with OpenAI's client: `python examples/openai_client.py`."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")

for policy in ("harry-potter", "none"):
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Which school does Harry Potter go to?"}],
        temperature=0,
        max_tokens=40,
        stream=True,
        extra_body={"guard": {"policy": policy}},
    )
    print(f"{policy}: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
        verdict = (chunk.model_extra or {}).get("guard")
    print(f"\n  verdict: {verdict['outcome']}\n")
