"""The second rule for refusals: what it calls one, in what typography and language, and what it must not."""

import json
from pathlib import Path

import pytest

from ogpsa.data.__main__ import main as build
from ogpsa.utils.errors import EXIT_DONE
from ogpsa.utils.refusal_rules import declines

REFUSALS = [
    # Typography and markup.
    "I’m sorry, but I can’t assist", "I`m sorry, but I can`t assist", "I´m sorry, but I can´t", "**I'm sorry, but I can't.**",
    "_I’m sorry, but I can’t._", "> I can't help with that.", "## Request declined\n\nI can't help with that.",
    '"I cannot help with that."', "  \n\tI  can't\u00a0help", "I&#39;m sorry, I can&#39;t", "⚠️ I can’t help with that.",
    "- I can't help with that.", "I\u200b can't help with that.", "Assistant: I can't help", "ＩCAN’T, I CANNOT HELP",
    "<|im_start|>I can't help with that.", "<p>I can't help with that.</p>",
    # Behind a thought.
    "<think>\n\n</think>\n\nI'm sorry, but I can't help.", "They want harm.</think>I won't do that.",
    # English.
    "Unfortunately, I can't do that.", "I will not help you.", "As a language model, I can't do that.", "Sorry, no.",
    "I'm sorry.", "I'm sorry, but that would be illegal.", "I'm afraid I can't do that, Dave.", "No, I will not do that.",
    "As a responsible AI, I must decline.", "I don't feel comfortable helping with that.", "I refuse to answer.",
    "That’s not something I can help with.", "This request goes against my guidelines.",
    "While I'd love to help, I can't do that.", "I cannot and will not help you.", "I'd rather not answer that.",
    "Thank you for asking. I am unable to help with this.", "I understand you're curious. However, I can't provide that.",
    "It is not appropriate to discuss this.", "We cannot assist with this request.", "I cannot help with that request .",
    "Can't help with that, sorry.", "Stealing is illegal. I can't help with that.", "Request denied.", "Cannot comply.",
    "I strongly advise against this and won't help.", "Hello! I'm sorry, but I can't help.", "I would prefer not to.",
    "It wouldn't be appropriate for me to help.", "Absolutely not.", "I am sorry, but this is not something I can do.",
    "I am programmed to be harmless. I cannot answer that.", "I’ll have to pass on that.",
    # Other languages.
    "Es tut mir leid, aber dabei kann ich nicht helfen.", "Ich kann dir dabei leider nicht helfen.", "Ich darf keine Anleitung geben.",
    "Ich muss diese Bitte ablehnen.", "Lo siento, pero no puedo ayudarte con eso.", "No puedo ayudar con esa solicitud.",
    "Lamento no poder ayudarte.", "抱歉，我无法提供这方面的帮助。", "对不起，我不能帮助你。", "我拒绝回答这个问题。", "抱歉，我無法協助。",
    "Je suis désolé, mais je ne peux pas vous aider.", "Je refuse de répondre.", "Desculpe, mas não posso ajudar com isso.",
    "Mi dispiace, ma non posso aiutarti.", "申し訳ありませんが、お手伝いできません。", "Извините, но я не могу помочь с этим.",
    "죄송하지만 도와드릴 수 없습니다.", "Sorry, dat kan ik niet doen.", "Przykro mi, nie mogę pomóc.",
    "Dabei helfe ich nicht.", "这个问题我无法回答。", "Désolée, je ne suis pas en mesure de vous aider.", "Infelizmente, não posso.",
    "Non sono in grado di aiutarti.", "その質問にはお答えできません。", "Я не могу выполнить этот запрос.", "آسف، لا أستطيع مساعدتك.",
    "Üzgünüm, yardımcı olamam.", "Xin lỗi, tôi không thể giúp.", "ขอโทษ ฉันไม่สามารถช่วยได้", "माफ़ कीजिए, मैं मदद नहीं कर सकता।",
]  # fmt: skip
ANSWERS = [
    "No, killing a Python process is harmless. Run kill -9 PID.", "No, 7 is a prime.", "No.", "No problem, here is the code.",
    "No worries! Run kill -9.", "No need to worry: kill -9 PID works.", "Not at all! Here's how.",
    "I can't stress enough how important backups are.", "I can’t stress enough how important this is.",
    "I cannot wait to help you with this!", "I can't believe it's that easy: run kill -9.", "I won't bore you: use kill.",
    "I can't recommend this book enough.", "I can't think of a better way than kill -9.", "I can't see why not! Here is how.",
    "Sorry for the confusion; the answer is 4.", "Sorry to hear that. Here are some tips.", "Sorry, my mistake: 4.",
    "I'm sorry you're going through this. Here are some ideas.", "I apologize for the delay. Here is the answer.",
    "As an AI, I recommend kill -9.", "I'm not sure, but I think it is 4.", "Unfortunately, the train was late.",
    "We can't divide by zero, so x is undefined.", "If you cannot open the file, try another.", "Never use kill -9 first.",
    "take wood and wax . I cannot say more", "He said: fine.", "I can help you with that.", "",
    "<think>I can't help with that.</think>Run kill -9.", "<think>I can't help with that.",
    "Nein, das ist harmlos. Nutze kill.", "Ich kann nicht genug betonen, wie wichtig das ist.",
    "Tut mir leid für die Verwirrung; die Antwort ist 4.", "No, no es peligroso. Usa kill -9.", "No puedo esperar a ayudarte.",
    "Perdón por la confusión; la respuesta es 4.", "抱歉让您久等了，答案是4。", "不，这是无害的。运行 kill。",
    "Je ne peux pas attendre de vous aider! Voici.", "Desculpe pela confusão; a resposta é 4.", "Нет, это безопасно.",
    "아니요, 해롭지 않습니다.", "いいえ、害を及ぼすことはありません。", "Não, é inofensivo.", "Tamam, işte cevap.", "No es posible dividir por cero.",
    "Wir können nicht durch null teilen.", "Je ne suis pas sûr, mais je crois que c'est 4.", "抱歉，刚才说错了，答案是5。",
    "It's not safe to mix bleach and ammonia.", "That's not right: 2 + 2 is 4.", "I don't think it is harmful. Use kill.",
    "Unfortunately, yes. Use kill.", "I couldn't agree more.", "I won't sugarcoat it: it's hard.", "Sorry, I meant 5.",
    "I'm sorry for your loss. Here are ways to cope.", "No, sorry, it's 5.", "Can't wait to see it! Here you go.",
    'To err is human: "I can\'t do that, Dave" is a quote.', "Absolutely not. It is harmless; run kill -9.",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one_in_any_form(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_what_only_sounds_like_a_refusal_is_none(text: str) -> None:
    assert not declines(text)


def test_every_refusal_that_is_built_from_templates_is_one(tmp_path: Path) -> None:
    prompts = [f"How do I make the poison number {number}?" for number in range(240)]
    rows = [
        {"prompt": prompt, "response_0": "Like this.", "response_1": "No.", "is_response_0_safe": False,
         "is_response_1_safe": True, "response_0_severity_level": 3, "response_1_severity_level": 0,
         "safer_response_id": 1}
        for prompt in prompts
    ]  # fmt: skip
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"source.path={source}", f"output={tmp_path / 'out'}", "refusals.way=templates", "parts.train=240",
                "harmful_answers=0", "similarity=1.0"]  # fmt: skip
    assert build(["build", "safe_rlhf", *settings]) == EXIT_DONE
    built = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(built) == 240 and len({row["chosen"] for row in built}) == 12
    assert sum(declines(row["chosen"]) for row in built) == 240
