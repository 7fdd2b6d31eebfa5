"""An agent that knows nothing of lightning-core: it reads a task, asks a model, and prints what its answer is worth."""

import json
import os
import sys
import urllib.request

task = json.load(sys.stdin)
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    data=json.dumps(
        {"model": os.environ["OPENAI_MODEL"], "messages": [{"role": "user", "content": task["question"]}]}
    ).encode(),
    headers={"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]},
)
with urllib.request.urlopen(request) as response:
    answer = json.load(response)["choices"][0]["message"]["content"]

print(task["question"], answer)
print(json.dumps({"reward": float(answer.strip() == task["answer"])}))
