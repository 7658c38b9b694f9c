"""A saved model in transformers' own classes: it makes media, reads them, and is trained."""

import sys

from transformers import AutoModelForMultimodalLM, AutoProcessor, Trainer, TrainingArguments, pipeline

pipe = pipeline("any-to-any", model="small", trust_remote_code=True)
image = pipe("a fox", generation_mode="image")[0]["generated_image"]
sound = pipe("a fox", generation_mode="audio")[0]["generated_audio"]
assert image.size == (16, 16) and len(sound)
(answer,) = pipe("a ", images=image, audio=sound, max_new_tokens=4)
assert answer["generated_text"].startswith("a")
model = AutoModelForMultimodalLM.from_pretrained("small", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("small", trust_remote_code=True)
rows = [{"parts": [{"text": "a fox", "loss": False}, {"image": image}]}] * 2
options = TrainingArguments("tuned", max_steps=20, remove_unused_columns=False, report_to=[], use_cpu=True)
Trainer(model, options, train_dataset=rows, data_collator=processor.collate).train()
assert "matplotlib" not in sys.modules
