"""Guard a loaded transformers model without a server: `python examples/plain_python.py`."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import guard
from guard.models.sources import add_model

path = add_model("smollm2").path
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)

for question in ("Which school does Harry Potter go to?", "What is the capital of Italy?"):
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with guard.attached(model, "harry-potter", config="config.toml") as handle:
        output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{question}\n  {handle.verdicts()[0].outcome}: {answer}\n")
