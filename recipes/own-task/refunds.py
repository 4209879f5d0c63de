"""A shop's returns desk: what is done about a parcel that comes back, by written rules.

The first rule that applies decides. 1. More than 14 days after delivery (gold customers: 30):
refuse. 2. Software that was opened: refuse. 3. Broken: replace while there is stock, else refund.
4. Dearer than 200 euros: supervisor. 5. Unopened: refund; opened: credit.
"""

GOODS = ["lamp", "kettle", "camera", "tent", "phone", "drill", "jacket", "software"]
TALES = [
    "{tier} customer returns a {item} for {price} euros, {state}, {days} days after delivery. "
    "Stock: {stock}. What do we do?",
    "Return desk: {item}, {price} euros, stock {stock}. It came {days} days ago to a {tier} "
    "customer and is {state}. What do we do?",
]


def make_problem(rng):
    item, tier = rng.choice(GOODS), rng.choice(["gold", "standard"])
    state, limit = rng.choice(["broken", "opened", "unopened"]), 30 if tier == "gold" else 14
    days, price, stock = rng.randrange(1, limit * 3 // 2), rng.randrange(5, 400), rng.randrange(4)
    question, steps = rng.choice(TALES).format(**locals()), []
    rules = [
        (f"1. {tier}, {days} days, limit {limit}", days > limit, "refuse"),
        (f"2. {item}, {state}", item == "software" and state == "opened", "refuse"),
        (f"3. {state}, stock {stock}", state == "broken", "replace" if stock else "refund"),
        (f"4. {price} euros, limit 200", price > 200, "supervisor"),
        (f"5. {state}", True, "refund" if state == "unopened" else "credit"),
    ]
    for rule, applies, decision in rules:
        steps.append(f"{rule}: {decision if applies else 'no'}")
        if applies:
            break
    return question, decision, "\n".join(steps)


def verify(problem, text):
    return text.strip().rstrip(".").lower() == problem.answer
