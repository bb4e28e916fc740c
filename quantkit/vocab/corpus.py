"""Texts on which two tokenizers must agree: languages, code, whitespace, emoji, numbers, things that look special."""

from collections.abc import Iterable

LANGUAGES = (
    "The lighthouse keeper's diary says: \"We've had 3 ships in 12 days; none stopped.\"",
    "灯塔看守人在日记里写道：“十二天里来了三艘船，没有一艘靠岸。”",
    "灯台守の日記には「十二日で船は三隻、どれも寄らなかった。」とある。カタカナもﾊﾝｶｸも。",
    "등대지기의 일기에는 “열이틀 동안 배 세 척이 왔지만 아무도 멈추지 않았다”고 적혀 있다.",
    "Смотритель маяка записал: «За двенадцать дней — три корабля; ни один не остановился». Ёлка, съезд.",
    "El farero anotó: «¿Tres barcos en doce días? ¡Ninguno se detuvo!» Mañana habrá pingüinos.",
    "Le gardien du phare a noté : « En douze jours, trois navires ; aucun ne s'est arrêté. » Où ça ? À Brœuf.",
    "Der Leuchtturmwärter schrieb: »Zwölf Tage, drei Schiffe; keines hielt.« Straße, ẞ, Übergrößenträger.",
    "كتب حارس المنارة: «في اثني عشر يومًا مرّت ثلاث سفن، ولم تتوقف أيٌّ منها.» ١٢٣٤٥",
    "प्रकाशस्तंभ के रखवाले ने लिखा: “बारह दिनों में तीन जहाज़ आए; कोई नहीं रुका।” १२३",
    "Người gác hải đăng viết: “Mười hai ngày, ba con tàu; không chiếc nào dừng lại.”",
    "ผู้ดูแลประภาคารเขียนว่า “สิบสองวัน เรือสามลำ ไม่มีลำไหนหยุด”",
    "Ο φαροφύλακας έγραψε: «Δώδεκα μέρες, τρία πλοία· κανένα δεν σταμάτησε».",
    "שומר המגדלור כתב: „שנים־עשר יום, שלוש אניות; אף אחת לא עצרה.”",
    "Deniz feneri bekçisi yazdı: “On iki günde üç gemi; hiçbiri durmadı.” İstanbul'da ılık ığdır.",
)
CODE = (
    "def tide(level: float, *, base=0.0):\n    if level < base:\n        return 0.0\n    return level - base\n",
    "\tfor (size_t i = 0; i != n; ++i) {\n\t\tsum += a[i] * b[i];\t// dot\n\t}\n",
    "SELECT name, COUNT(*) FROM ships WHERE seen >= '1897-03-04' GROUP BY 1 HAVING COUNT(*) > 2;",
    '{"keeper": null, "ships": [1, 2, 3], "note": "caf\\u00e9 \\"x\\"\\n", "pi": 3.14159e-10}',
    '<p class="log">wind&nbsp;NW &amp; rising<br/></p>\n<!-- 7 Bft -->',
    "$ grep -rn 'TODO|FIXME' ./src | awk -F: '{print $1\":\"$2}' >> out.txt 2>&1 && echo \"$?\"",
    r"\frac{\partial u}{\partial t} = \alpha \nabla^2 u, \quad x \in [0, 1)",
    "https://example.org/a_b/c-d?q=%E7%81%AF&n=10#top user.name+tag@example.co.uk C:\\Temp\\new\r\n",
    "camelCaseWord snake_case_word SCREAMING_CASE kebab-case x86_64 i18n 0xDEADBEEF 1_000_000",
)
CHARACTERS = (
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇯🇵🇧🇷 ❤️ ☕ 1️⃣ 🧑🏿‍🚀🫠",
    "e\u0301 vs \u00e9, a\u030a vs \u00e5, Z\u0351\u036b\u0343a\u0322\u034el\u034fgo, \uac00 vs \u1100\u1161",
    "ﬁ ﬂ ½ ² ㎏ Ⅷ ① ＡＢＣ １２３ ｶﾞ ℌ ſ",
    "zero\u200bwidth\u200djoiner\ufeffbom soft\u00adhyphen rtl\u200fmark nbsp\u00a0thin\u2009ideographic\u3000space",
    "\u2018single\u2019 \u201cdouble\u201d \u2013 en \u2014 em \u2026 • § ¶ † ‡ ° ± × ÷ ≠ ≤ ∞ √ ∑ → ⇒ █ ─ ♫",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠮷野家 🂡 𒀀 \U0010fffd \ufffd \ue000",
    "bell\x07 null\x00 escape\x1b[0m delete\x7f next\x85line \u2028 \u2029",
    "don't won't they'll I'd we're it's 'tis DON'T IT'S l'été O'Neil rock'n'roll",
)
NUMBERS = (
    "0 1 12 123 1234 12345 123456 1234567890 00012 3.14159 -2.5e-10 1,234,567.89 50% $19.99 €5 ¥1000",
    "67*39=2613; 6712+3957=10669; 2024-02-29T23:59:60Z; +1 (555) 010-9999; 192.168.0.1; v1.2.3-rc.4",
)
LOOKALIKES = (
    "<s> </s> <unk> <pad> <mask> <bos> <eos> [INST] [/INST] <<SYS>> <</SYS>> <0x0A> <0xE7>",
    "<|endoftext|> <|im_start|>user\nhi<|im_end|> <|begin_of_text|> <|eot_id|> <|startoftext|> <fim_prefix> <sep>",
    "▁under ▁▁ two Ġ Ċ ĉ Ġthe ## ##ing @@ </w>",
)
EDGES = ("", " ", "  ", "\n", "\t", "\r\n", "a", " a", "a ", " a ", "\na", "a\n", "　", "A", "1", "é", "天", "🙂")


def corpus(special_tokens: Iterable[str] = ()) -> list[str]:
    """The texts, in a fixed order.

    Args:
        special_tokens: of the tokenizer at hand; each stands alone, within words and between spaces.
    """
    runs = [
        f"{before}{space * length}{after}"
        for space in (" ", "\t", "\n", "\r\n", " \n", "\u3000")
        for length in (2, 3, 4, 7, 8, 16, 31, 32, 33, 64, 100)
        for before, after in (("x", "y"), ("", "return 1"), ("end.", ""))
    ]
    special = [
        text
        for token in special_tokens
        for text in (token, f"a{token}b", f"a {token} b", f"{token}{token}", f"\n{token}\n", f"{token[:-1]} {token}s")
    ]
    return [*LANGUAGES, *CODE, *CHARACTERS, *NUMBERS, *LOOKALIKES, *EDGES, *runs, *special]
