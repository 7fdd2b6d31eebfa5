"""An agent that needs no model, so that `train.yaml` runs anywhere."""

from lightning_core import PromptTemplate, rollout


@rollout
def greet(task: dict[str, str], prompt_template: PromptTemplate) -> float:
    """Greet somebody; the reward is 1 for the greeting that was asked for."""
    return float(prompt_template.format(name=task["name"]) == task["greeting"])
