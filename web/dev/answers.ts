// What the mock says.

export interface Script {
  thinking: string;
  text: string;
  tokensPerSecond: number;
  delay?: number;
  error?: string;
  cut?: boolean;
}

const THINKING = `The user asks a simple question, so the answer should be short. Let me check the facts first.

Light from the sun holds all colours. Air scatters short waves more: the strength goes with $1/\\lambda^4$, so blue at 450 nm is scattered about $(650/450)^4 \\approx 4.4$ times as much as red at 650 nm.

Wait, violet is shorter still. But the sun gives less of it, and our eyes see it less well. So blue it is.`;

const SKY = `The sky is blue because air scatters **short waves of light more than long ones**.

Sunlight holds all colours. On its way through the air the blue part is thrown to all sides, so it reaches your eye from every direction, while red goes on almost straight. The strength follows Rayleigh's law:

\\[ I \\propto \\frac{1}{\\lambda^4} \\]

| colour | wavelength | scattered |
|:--|--:|--:|
| red | 650 nm | 1.0 |
| green | 550 nm | 1.9 |
| blue | 450 nm | 4.4 |

1. At noon the way through the air is short, and the blue wins.
2. In the evening it is long: the blue is gone before it arrives, and what is left is red.`;

const CODE = `Here is a small function that reads a CSV file and adds up one column:

\`\`\`python
import csv


def total(path: str, column: str) -> float:
    """The sum of a column; rows without a number are left out."""
    with open(path, newline="", encoding="utf-8") as file:
        values = (row[column] for row in csv.DictReader(file))
        return sum(float(value) for value in values if value.strip())


print(total("sales.csv", "price"))  # 1234.5
\`\`\`

Call it with \`total("sales.csv", "price")\`. A file with a [byte-order mark](https://en.wikipedia.org/wiki/Byte_order_mark) needs \`utf-8-sig\`.`;

const MATH = `Let $f(x) = x^2 e^{-x}$. Then by the product rule

$$
f'(x) = 2x e^{-x} - x^2 e^{-x} = x(2 - x)e^{-x},
$$

which is zero at $x = 0$ and \\(x = 2\\). Since $f''(0) = 2 > 0$ and $f''(2) = -2e^{-2} < 0$, there is a minimum at $0$ and a maximum at $2$ with the value $4e^{-2} \\approx 0.54$.

> A price of $5 or $6 is no formula.`;

const HOSTILE = `<script>document.title = "pwned"</script><img src="https://evil.example/x.png" onerror="document.title='pwned'">
<iframe src="https://evil.example"></iframe>

[click](javascript:alert(1)) and [data](data:text/html,<script>alert(1)</script>) and ![pixel](https://evil.example/pixel.png)

Broken \\(\\frac{1}{\\) and $$\\begin{matrix} and \\[ never closed **bold *and

\u202Ethis runs the other way\u202C and مرحبا بالعالم, then back.

| a | b
|--
| <b>x</b> | \`unclosed

\`\`\`html
<script>alert("in a fence")</script>
`;

const KOREAN = `하늘이 파란 까닭은 공기가 **파장이 짧은 빛을 더 많이 흩어 놓기** 때문입니다.

햇빛에는 모든 색이 들어 있습니다. 공기를 지나는 동안 파란빛은 사방으로 흩어져 어느 쪽을 보아도 눈에 들어오고, 붉은빛은 거의 곧게 나아갑니다. 저녁에는 빛이 지나는 길이 길어져 파란빛이 먼저 사라지고 붉은빛이 남습니다.`;

export function answerFor(question: string, thinks: boolean): Script {
  const word = question.trim().split(/\s+/)[0]?.toLowerCase() ?? "";
  const thinking = thinks ? THINKING : "";
  const base = { thinking, tokensPerSecond: 60 };
  switch (word) {
    case "hostile":
      return { ...base, thinking: "<b>not bold</b>", text: HOSTILE, tokensPerSecond: 400 };
    case "hugeline":
      return { ...base, thinking: "", text: "x".repeat(1_000_000), tokensPerSecond: 100_000 };
    case "long":
      return {
        ...base,
        text: Array.from({ length: 40 }, () => SKY).join("\n\n"),
        tokensPerSecond: 200,
      };
    case "fast":
      return {
        ...base,
        thinking: "",
        text: Array.from({ length: 60 }, (_, n) => [SKY, CODE, MATH][n % 3]).join("\n\n"),
        tokensPerSecond: 200,
      };
    case "ponder":
      return {
        ...base,
        thinking: Array.from({ length: 8 }, () => THINKING).join("\n\n"),
        text: SKY,
      };
    case "code":
      return { ...base, text: CODE };
    case "math":
      return { ...base, text: MATH };
    case "fail":
      return {
        ...base,
        thinking: "",
        text: "The beginning of",
        error: "the model ran out of memory; choose a smaller one or q4",
      };
    case "cut":
      return { ...base, text: SKY.slice(0, 400), cut: true };
    case "continue":
      return { ...base, thinking: "", text: " …and this is the rest of it." };
    case "slow":
      return { ...base, text: SKY, tokensPerSecond: 12 };
    default:
      return { ...base, text: /[가-힣]/.test(question) ? KOREAN : SKY };
  }
}
