"""What people write today: a FastAPI route that calls a pipeline of transformers, one request at a time."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


class Prompt(BaseModel):
    """The body of a request."""

    text: str


def main(model: str, port: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    head = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype="float32")
    head.config.pad_token_id = tokenizer.pad_token_id
    score = pipeline("text-classification", model=head, tokenizer=tokenizer, function_to_apply="none")
    app = FastAPI()

    # Not an ordinary function, which FastAPI would run in many threads at once: they hold each other up.
    @app.post("/score")
    async def of(prompt: Prompt) -> dict[str, float]:
        return {"score": score(prompt.text)[0]["score"]}

    @app.get("/health")
    async def health() -> None:
        return None

    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
