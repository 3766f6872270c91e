"""Every question wording, in two disjoint sets: what training sees and what only the held-out split uses.

Knows nothing of scenes; the fields in braces are filled by the module that asks.
"""

from random import Random

_W: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "color_of": (
        (
            "What color is the {kind}?",
            "What colour is the {kind}?",
            "Which color does the {kind} have?",
            "Tell me the color of the {kind}.",
            "The {kind} is what color?",
            "Name the color of the {kind}.",
            "What is the color of the {kind}?",
            "Look at the {kind}. What color is it?",
            "Color of the {kind}?",
        ),
        (
            "Can you say which color the {kind} is?",
            "In what color was the {kind} drawn?",
            "Please identify the {kind}'s color.",
        ),
    ),
    "color_at": (
        (
            "What color is the shape in the {pos}?",
            "Which color is the {pos} shape?",
            "What is the color of the thing in the {pos}?",
            "Tell me the color of the shape in the {pos}.",
        ),
        ("In which color is the shape at the {pos} painted?", "What colour do you see in the {pos}?"),
    ),
    "kind_of_color": (
        (
            "Which shape is {color}?",
            "What shape is {color}?",
            "What is the {color} shape?",
            "Name the shape that is {color}.",
            "What is the {color} thing?",
            "Tell me which shape is {color}.",
        ),
        ("What kind of shape has been drawn in {color}?", "Identify the {color} figure."),
    ),
    "kind_at": (
        (
            "What shape is in the {pos}?",
            "What is in the {pos}?",
            "Which shape do you see in the {pos}?",
            "What is drawn in the {pos} of the picture?",
            "Name the shape in the {pos}.",
        ),
        ("Looking at the {pos}, which shape is there?", "What figure occupies the {pos}?"),
    ),
    "position_of": (
        (
            "Where is the {thing}?",
            "In which part of the picture is the {thing}?",
            "Where can I find the {thing}?",
            "What is the position of the {thing}?",
            "Tell me where the {thing} is.",
            "Where do you see the {thing}?",
        ),
        ("Whereabouts in the image is the {thing} located?", "Can you point out the place of the {thing}?"),
    ),
    "count_kind": (
        (
            "How many {kinds} are there?",
            "How many {kinds} do you see?",
            "Count the {kinds}.",
            "What is the number of {kinds}?",
            "How many {kinds} are in the picture?",
            "Tell me how many {kinds} there are.",
        ),
        ("Can you count up the {kinds} for me?", "What is the total of {kinds} in this image?"),
    ),
    "count_color": (
        (
            "How many {color} shapes are there?",
            "Count the {color} shapes.",
            "How many shapes are {color}?",
            "How many {color} things do you see?",
            "What is the number of {color} shapes?",
        ),
        ("In total, how many of the shapes are {color}?", "How many figures have the color {color}?"),
    ),
    "count_all": (
        (
            "How many shapes are there?",
            "How many shapes do you see?",
            "Count the shapes.",
            "How many shapes are in the picture?",
            "What is the number of shapes?",
            "How many things are drawn here?",
        ),
        ("Give me the total count of shapes.", "Altogether, how many figures can be seen?"),
    ),
    "exists": (
        (
            "Is there a {thing}?",
            "Is there a {thing} in the picture?",
            "Do you see a {thing}?",
            "Can you see a {thing}?",
            "Does the picture show a {thing}?",
            "Is a {thing} there?",
        ),
        ("Would you say there is a {thing} here?", "Can a {thing} be found in this image?"),
    ),
    "is_color": (
        (
            "Is the {kind} {color}?",
            "Is the color of the {kind} {color}?",
            "Do you see a {kind} that is {color}?",
            "Is this {kind} {color}?",
        ),
        ("Would it be right to call the {kind} {color}?", "Has the {kind} been drawn in {color}?"),
    ),
    "larger": (
        (
            "Which is larger, the {a} or the {b}?",
            "Which one is bigger, the {a} or the {b}?",
            "Is the {a} or the {b} larger?",
            "What is bigger: the {a} or the {b}?",
        ),
        (
            "Between the {a} and the {b}, which has the larger size?",
            "Of the {a} and the {b}, which is the big one?",
        ),
    ),
    "more": (
        (
            "Are there more {a} than {b}?",
            "Do you see more {a} than {b}?",
            "Is the number of {a} larger than the number of {b}?",
        ),
        ("Would you say that {a} outnumber {b}?", "Does the image contain more {a} than {b}?"),
    ),
    "left_of": (
        (
            "Is the {a} to the left of the {b}?",
            "Is the {a} left of the {b}?",
            "Do you see the {a} to the left of the {b}?",
        ),
        ("Does the {a} lie on the left side of the {b}?",),
    ),
    "right_of": (
        (
            "Is the {a} to the right of the {b}?",
            "Is the {a} right of the {b}?",
            "Do you see the {a} to the right of the {b}?",
        ),
        ("Does the {a} lie on the right side of the {b}?",),
    ),
    "above": (
        ("Is the {a} above the {b}?", "Is the {a} higher than the {b}?", "Do you see the {a} above the {b}?"),
        ("Has the {a} been placed over the {b}?", "Does the {a} sit above the {b}?"),
    ),
    "below": (
        ("Is the {a} below the {b}?", "Is the {a} lower than the {b}?", "Do you see the {a} below the {b}?"),
        ("Has the {a} been placed under the {b}?", "Does the {a} sit below the {b}?"),
    ),
    "background": (
        (
            "What color is the background?",
            "What is the background color?",
            "Which color is behind the shapes?",
        ),
        ("Name the color of the backdrop.",),
    ),
    "describe": (
        (
            "Describe the picture.",
            "Describe this image.",
            "What do you see?",
            "What is in the picture?",
            "What does this picture show?",
            "Tell me about this image.",
            "Describe what you see in detail.",
            "Give me a description of the picture.",
            "What is in this image?",
            "Please describe the image.",
        ),
        (
            "Could you describe this picture for me?",
            "Write a short description of what is visible.",
            "Explain what can be seen here.",
        ),
    ),
    "read_word": (
        (
            "What does the sign say?",
            "Read the sign.",
            "What is written on the sign?",
            "What word is on the sign?",
            "What does it say?",
            "Which word do you see?",
            "Read the word.",
            "What is the text on the sign?",
        ),
        ("Can you read out the word that is shown?", "Which text has been printed on the sign?"),
    ),
    "read_number": (
        (
            "What number is on the sign?",
            "Which number do you see?",
            "Read the number.",
            "What is the number?",
            "What number is written here?",
            "Tell me the number on the sign.",
        ),
        ("Can you read out the number that is shown?", "Which number has been printed on the sign?"),
    ),
    "read_all": (
        (
            "What does the sign say?",
            "Read all the text.",
            "What is written on the sign?",
            "Read the sign to me.",
            "What text do you see?",
        ),
        ("Transcribe the sign.", "Can you read out everything printed on the sign?"),
    ),
    "says": (
        ('Does the sign say "{word}"?', 'Is the word "{word}" on the sign?', 'Do you see the word "{word}"?'),
        ('Can the word "{word}" be read on the sign?', 'Would you say the sign reads "{word}"?'),
    ),
    "sign_color": (
        (
            "What color is the sign?",
            "Which color is the sign?",
            "What is the color of the sign?",
            "Tell me the color of the sign.",
        ),
        ("In what color is the sign painted?", "Name the sign's color."),
    ),
    "chart_value": (
        (
            "What is the value of {label}?",
            "What value does {label} have?",
            "How much is {label}?",
            "What is the value for {label}?",
            "Read the value of {label}.",
            "Which number belongs to {label}?",
        ),
        ("According to the chart, what number does {label} reach?", "Give me the figure shown for {label}."),
    ),
    "chart_max": (
        (
            "Which is the highest?",
            "Which one has the largest value?",
            "What has the highest value?",
            "Which {part} is the largest?",
            "Which {part} is the highest?",
            "Name the largest {part}.",
        ),
        ("Which {part} comes out on top?", "Tell me which {part} has the greatest value."),
    ),
    "chart_min": (
        (
            "Which is the lowest?",
            "Which one has the smallest value?",
            "What has the lowest value?",
            "Which {part} is the smallest?",
            "Which {part} is the lowest?",
            "Name the smallest {part}.",
        ),
        ("Which {part} comes out last?", "Tell me which {part} has the least value."),
    ),
    "chart_count": (
        (
            "How many {part}s are there?",
            "How many {part}s does the chart have?",
            "Count the {part}s.",
            "How many {part}s do you see?",
        ),
        ("Give me the number of {part}s in the chart.",),
    ),
    "chart_color": (
        (
            "What color is {label}?",
            "Which color is the {part} of {label}?",
            "What is the color of {label}?",
            "What color is the {part} for {label}?",
        ),
        ("In what color is {label} shown?",),
    ),
    "chart_compare": (
        (
            "Is {a} higher than {b}?",
            "Is {a} larger than {b}?",
            "Is the value of {a} higher than that of {b}?",
            "Does {a} have a larger value than {b}?",
        ),
        ("Does {a} beat {b}?", "Would you say {a} is greater than {b}?"),
    ),
    "chart_kind": (
        (
            "What kind of chart is this?",
            "Is this a bar chart, a line chart or a pie chart?",
            "What type of chart is it?",
        ),
        ("Name the type of diagram.",),
    ),
    "trend": (
        ("Does the line go up or down?", "Is the line rising or falling?", "What is the trend of the line?"),
        ("Overall, which way does the line move?",),
    ),
    "price": (
        (
            "What is the price of {item}?",
            "How much is the {item}?",
            "How much does the {item} cost?",
            "What does {item} cost?",
            "Read the price of {item}.",
            "What is the value for {item}?",
        ),
        ("What would I pay for the {item}?", "Give me the amount next to {item}."),
    ),
    "total": (
        (
            "What is the total?",
            "How much is the total?",
            "What is the total amount?",
            "Read the total.",
            "What do I have to pay?",
        ),
        ("What sum is given at the end?", "How much was paid altogether?"),
    ),
    "dearest": (
        ("Which item is the most expensive?", "What costs the most?", "Which item has the highest price?"),
        ("Which of the items is the dearest?",),
    ),
    "cheapest": (
        ("Which item is the cheapest?", "What costs the least?", "Which item has the lowest price?"),
        ("Which of the items has the smallest price?",),
    ),
    "rows": (
        ("How many items are listed?", "How many items are there?", "Count the items."),
        ("What is the number of entries?",),
    ),
    "shop": (
        ("What is the name of the shop?", "Which shop is this receipt from?", "What is written at the top?"),
        ("Who issued this receipt?",),
    ),
    "table_value": (
        (
            "What is the {column} of {item}?",
            "Which {column} does {item} have?",
            "What is the {column} for {item}?",
            "Read the {column} of {item}.",
        ),
        ("Look up the {column} of {item}.", "Which number stands next to {item}?"),
    ),
    "table_max": (
        (
            "Who has the highest {column}?",
            "Which row has the largest {column}?",
            "Which has the highest {column}?",
        ),
        ("Who leads with the greatest {column}?",),
    ),
    "two_more": (
        (
            "Which picture has more shapes?",
            "Which image shows more shapes, the first or the second?",
            "Does the first or the second picture have more shapes?",
        ),
        ("In which of the two pictures are there more figures?",),
    ),
    "two_shape": (
        (
            "What is in the first picture and what is in the second?",
            "What do the two pictures show?",
            "Describe both pictures.",
            "What do you see in the two images?",
        ),
        ("Tell me what each of these pictures shows.",),
    ),
    "two_word": (
        (
            "What do the two signs say?",
            "Read both signs.",
            "What is written in the first and in the second picture?",
        ),
        ("Can you read out the text of each picture?",),
    ),
    "two_nth": (
        ("What is in the {nth} picture?", "What does the {nth} image show?", "Describe the {nth} picture."),
        ("Tell me what the {nth} picture contains.",),
    ),
    "two_sign": (
        ("What does the {nth} sign say?", "Read the {nth} sign.", "What is written in the {nth} picture?"),
        ("Can you read out the sign in the {nth} picture?",),
    ),
    "two_count": (
        ("How many shapes are in the {nth} picture?", "Count the shapes in the {nth} image."),
        ("Give me the number of figures in the {nth} picture.",),
    ),
    "two_same": (
        ("Do both pictures show the same shape?", "Is it the same shape in both pictures?"),
        ("Are the shapes in the two images of one kind?",),
    ),
    "follow_color": (
        ("And what color is it?", "What color is it?", "Which color does it have?"),
        ("And its color, please?",),
    ),
    "follow_where": (
        ("And where is it?", "Where is it?", "In which part of the picture is it?"),
        ("And where does it lie?",),
    ),
    "follow_size": (
        ("Is it small or large?", "And how big is it?", "What size is it?"),
        ("Is that a small or a large one?",),
    ),
}


def wording(key: str, rng: Random, split: str, **fields: str) -> str:
    """One wording of question ``key`` from ``split`` ("train" or "heldout"), its fields filled in."""
    train, heldout = _W[key]
    options = heldout if split == "heldout" else train
    return options[rng.randrange(len(options))].format(**fields)


def keys() -> tuple[str, ...]:
    """All question keys."""
    return tuple(_W)


def templates(key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The (train, heldout) templates of one question."""
    return _W[key]
