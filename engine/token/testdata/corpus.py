"""Text for the tokenizer fixtures, made from a seed: what the small vocabularies are trained on, and
the cases that encoding is tested with. Everything here was written for this project."""
import random

SENTENCES = [
    "The harbour was quiet before the boats came home in the evening.",
    "We'll see what they've found; it's not what I'd expect, and you're early.",
    "Please write the answer as one number, then explain how you got there.",
    "The learning rate is too high when the loss grows for ten steps.",
    "Die Brücke über den Fluß wurde im März für größere Züge gesperrt.",
    "L'été dernier, nous avons mangé des crêpes près de la forêt.",
    "El niño pequeño comió piñas y después durmió toda la mañana.",
    "Zażółć gęślą jaźń, a potem idź spokojnie do domu nad rzeką.",
    "Příliš žluťoučký kůň stál u řeky a díval se na měsíc.",
    "İstanbul'da yağmur yağıyor, çocuklar ışıkları sayıyor.",
    "Корабль вышел из гавани рано утром, и ветер был слабый.",
    "Ένα μικρό πλοίο έφυγε από το λιμάνι πριν από το πρωί.",
    "הספינה יצאה מן הנמל מוקדם בבוקר וחזרה בערב.",
    "خرجت السفينة من الميناء في الصباح الباكر ثم عادت.",
    "जहाज सुबह बंदरगाह से निकला और शाम को लौट आया।",
    "เรือออกจากท่าแต่เช้าและกลับมาในตอนเย็น",
    "船在清晨离开港口,傍晚又回来了。我们等了很久。",
    "船は朝早く港を出て、夕方に戻ってきました。とても静かでした。",
    "배는 이른 아침에 항구를 떠나 저녁에 돌아왔습니다.",
    "Con thuyền rời bến cảng từ sáng sớm và trở về lúc chiều.",
    "12 ships, 345 crates, 6789 tons, 3.14159 litres at 10:45 on 2024-02-29.",
    "Tickets cost $12.50 (or 11,40 €) — that's 25% off! Really?! Yes…",
]

CODE = [
    "def area(width, height):\n    if width < 0 or height < 0:\n        raise ValueError(\"negative\")\n    return width * height\n",
    "for (int i = 0; i < n; i++) {\n\tsum += a[i] * b[i]; // dot product\n}\n",
    "func (s *Stack) Push(v int) {\n\ts.items = append(s.items, v)\n}\n\n\nfunc main() { fmt.Println(\"ok\") }\n",
    "SELECT name, COUNT(*) FROM boats WHERE tons >= 100 GROUP BY name;\r\n",
    "{\"name\": \"boat\", \"tags\": [\"a\", \"b\"], \"size\": 1.5e-3, \"ok\": true, \"none\": null}",
    "# Title\n\n- first item\n- **second** item with `code`\n\n> a quote\n\n```sh\nls -la | grep x\n```\n",
    "<div class=\"row\">\r\n  <p>Hello&nbsp;there</p>\r\n</div>\r\n",
    "x = (a+b)**2 - 4*a*c  # x^2\ny := x<<3 | 0xFF &^ mask\n",
    "camelCaseName HTTPServer parseXMLFile snake_case_name SCREAMING_CASE iPhone15Pro",
]

EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇺🇦", "❤️", "🏴‍☠️", "1️⃣", "🫠", "✨", "🧑🏿‍🚀"]
MARKS = ["e\u0301", "a\u0323\u0302", "a\u0302\u0323", "\u0041\u030a", "o\u0308\u0304", "\u1100\u1161\u11a8", "\uac00\u11a8",
         "q\u0307\u0323", "\u0344", "\u212b", "\u2126", "\ufb01", "\u0958", "\u09c7\u09be", "x" + "\u0301\u0323" * 20,
         "\u1e9b\u0323", "d\u0323\u0307", "\u0b47\u0b57", "\U0001d15e", "a\u0898\u0301", "a\u0301\u1ac1\u0323",
         "\U00011935\U00011930", "\U00011938", "\u0f71\u0f72\u0f74", "\u05e9\u05bc\u05c1", "\u3046\u3099", "\uff76\uff9e"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "\u0085", "\u200b",
          "\ufeff", "\u1680", "\u202f", "\u180e", "\x0b", "\x0c", "\t\t  ", "     \n   x", "  \r", "\x1c"]
ODD = ["\x00", "\x01\x02", "\x7f", "\x80", "\u00ad", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\u200d", "\u202e",
       "ſ", "'ſ", "'S", "'LL", "'Re", "'ve", "'tis", "''s", "' s", "'d've", "K", "ǅ", "ʰ", "ª", "²", "½", "Ⅷ", "٣٤", "४५६",
       "〇", "①", "1234567", "1a2b", "١٢٣٤", "__", "--", "...", "?!", "->", "=>", "//", "/\n/", "\\n", "\"'`", "<|", "|>", "<<", ">>",
       "▁", "▁▁a", "Ġ", "Ċ", "ĠĠthe", "Ā", "<0x0A>", "<0xFF>", "ﷺ", "𠮷", "𝒳", "߷", "ꙮ", "\u0301", "\u0301a", " \u0301", "\n\u0301b",
       "ﬀ", "ß", "ẞ", "ŉ", "'ﬆ"]


def training(rng, lines=900):
    out = []
    for _ in range(lines):
        kind = rng.random()
        if kind < 0.55:
            out.append(" ".join(rng.choice(SENTENCES) for _ in range(rng.randint(1, 3))))
        elif kind < 0.85:
            out.append(rng.choice(CODE))
        elif kind < 0.93:
            words = rng.choice(SENTENCES).split()
            rng.shuffle(words)
            out.append(" ".join(w.upper() if rng.random() < 0.2 else w for w in words))
        else:
            out.append("".join(rng.choice(EMOJI + MARKS + SPACES + ODD[20:]) for _ in range(rng.randint(2, 8))))
    return out


def point(rng):
    """A code point that is not a surrogate, more often from the lower planes."""
    while True:
        c = rng.choice([rng.randrange(0x80, 0x800), rng.randrange(0x800, 0x3000), rng.randrange(0x3000, 0x10000),
                        rng.randrange(0x10000, 0x20000), rng.randrange(0x20000, 0x110000), rng.randrange(0x80)])
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def cases(rng, added, mixes=200, randoms=60):
    """The texts to encode; added are the tokenizer's added tokens."""
    out = ["", " ", "a", "\n"]
    out += SENTENCES + CODE + [" ".join(EMOJI), "".join(EMOJI)]
    out += ["".join(MARKS), " ".join(MARKS), "".join(SPACES), "a".join(SPACES), "".join(ODD), " ".join(ODD)]
    out += ["'".join(["s", "t", "re", "VE", "m", "Ll", "d", "x", "ſ"]), "I'M you'RE he'S we'LL they'D can'T I'VE"]
    out += ["a" * 700, " " * 700, "\n" * 300, "ab" * 300, "\u0301" * 200, "é" * 200, "的" * 200, "1" * 200, "😀" * 60,
            "=" * 300, " \n" * 100, "\t" * 90 + "x", "a" + " " * 99 + "b", "\r\n" * 60, "! " * 80, "the" * 120, "A" * 99 + "b" * 99]
    for a in added:
        out += [a, a + a, " " + a + " ", "x" + a + "y", "\n" + a + "\n  " + a, a[:-1], a[1:], a.upper(), "é" + a + "\u0301"]
    atoms = SENTENCES + CODE + EMOJI + MARKS + SPACES * 3 + ODD * 2 + list(added) * 3
    for _ in range(mixes):
        parts = []
        for _ in range(rng.randint(2, 7)):
            a = rng.choice(atoms)
            if len(a) > 24:
                i = rng.randrange(len(a))
                a = a[i:i + rng.randint(1, 30)]
            parts.append(a)
        out.append("".join(parts))
    for _ in range(randoms):
        out.append("".join(point(rng) for _ in range(rng.randint(1, 25))))
    return out
