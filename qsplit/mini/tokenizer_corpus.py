"""What the small tokenizer is trained on: short English and Chinese sentences about pictures.

The merges of a 1,024-entry vocabulary are precious, so the lines hold the words that questions about photographs
and simple drawings use: colours, shapes, numbers, places, clothes, and the ways of asking and answering.
"""

# Chinese sentences end in full-width punctuation, and mean it.
from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, product

from qsplit.mini import questions

__all__ = ["lines"]

COLOURS = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "orange": "橙色", "purple": "紫色",
    "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色", "grey": "灰色",
}  # fmt: skip
SHAPES = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "rectangle": "长方形", "star": "星形",
    "cross": "十字", "ring": "圆环", "diamond": "菱形",
}  # fmt: skip
CLOTHES = {
    "shirt": "衬衫", "T-shirt": "T恤", "trouser": "裤子", "pullover": "毛衣", "dress": "连衣裙", "coat": "外套",
    "sandal": "凉鞋", "sneaker": "运动鞋", "bag": "包", "ankle boot": "短靴", "hat": "帽子",
}  # fmt: skip
THINGS = {
    "cat": "猫", "dog": "狗", "bird": "鸟", "horse": "马", "fish": "鱼", "flower": "花", "tree": "树", "house": "房子",
    "car": "汽车", "boat": "船", "bridge": "桥", "mountain": "山", "beach": "海滩", "street": "街道", "person": "人",
    "child": "孩子", "cup of coffee": "咖啡", "rocket": "火箭", "book": "书", "clock": "钟",
}  # fmt: skip
NUMBERS = {
    "zero": "零", "one": "一", "two": "两", "three": "三", "four": "四", "five": "五", "six": "六", "seven": "七",
    "eight": "八", "nine": "九",
}  # fmt: skip
PLACES = {
    "left of": "左边", "right of": "右边", "above": "上面", "below": "下面", "inside": "里面", "next to": "旁边",
    "behind": "后面", "in front of": "前面",
}  # fmt: skip
CORNERS = {
    "top left": "左上角", "top right": "右上角", "bottom left": "左下角", "bottom right": "右下角", "middle": "中间",
}  # fmt: skip
SCENES = {
    "at sunset": "在日落时", "at night": "在夜晚", "in the morning": "在早晨", "in the snow": "在雪中",
    "in the rain": "在雨中", "on the water": "在水上", "under a blue sky": "在蓝天下", "in a garden": "在花园里",
    "indoors": "在室内", "outdoors": "在室外",
}  # fmt: skip

GENERAL = """\
You are a helpful assistant.
Describe this image. Describe the image in detail. Can you describe it, please?
Describe the picture in one sentence. Give it a short title. Write a caption for this photograph.
What is in the picture? What do you see in this photograph? What can be seen here?
What is this? What is it? Who is in it? Where was it taken? When was it taken?
Is there any text in the image? No, there is no text in the image. What does the sign say?
How many people are there in the photograph? There is nobody in it. There are some people and a few animals.
Which colour is it? Which shape is it? Which of them is larger? Which one is smaller? What shape is on the left?
Answer with yes or no. Answer with one word. Please answer the question. Answer in Chinese. Answer in English.
Yes, it is. No, it is not. Yes, there is. No, there is not. I do not know. I cannot see that.
The picture shows nothing else. The background is light. The background is dark. The light comes from the window.
Is it a photograph or a drawing? It is a drawing. It is a photograph. It was made by hand.
Are these two images the same? They are similar, but they are not the same. What is the difference?
Compare the first picture with the second picture. The first has more colours than the other.
Is anyone smiling? Is the photograph sharp or blurred? It looks sharp. It looks old. It is black and white.
Is this picture safe to show to children? Does it show a document, a screen, a face or a receipt?
Given an image, summarize the provided image in one word.
Summary above image in one word: Summary above sentence in one word:
Given only text, describe the text in one word.
The largest shape is in the middle; the smallest one is near the edge. All of them are the same size.
They're next to each other, and it's hard to see what's behind them. I'm sure we've seen you'll like it.
A man, a woman and two children stand in front of a building. He is wearing a hat and she has a bag.
On the table there is food: bread, fruit, an apple and a glass of water. The plate is round.
The sky is clear, the grass is green and the sun is bright. It is summer. There are clouds over the mountains.
我|是|你|的|一个|有用|的|助手|。
请|描述|这|张|图片|。|请|用|一|句|话|描述|这|张|照片|。
图片|里|有|什么|？|你|看|到|了|什么|？|这|是|什么|？|这|是|谁|？
这|张|照片|是|在|哪里|拍|的|？|是|什么|时候|拍|的|？
图片|里|有|文字|吗|？|没有|，|图片|里|没有|文字|。
照片|里|有|几|个|人|？|照片|里|没有|人|。|他|们|在|做|什么|？
它|是|什么|颜色|？|它|是|什么|形状|？|哪|一个|更|大|？|哪|一个|更|小|？
请|回答|是|或者|不是|。|请|用|一个|词|回答|。|请|回答|问题|。
是|的|。|不是|。|有|。|没有|。|我|不|知道|。
背景|是|浅|色|的|。|背景|是|深|色|的|。|图片|里|没有|别|的|东西|。
这|是|照片|还是|图画|？|这|是|一|幅|图画|。|这|是|一|张|照片|。
这|两|张|图片|一样|吗|？|它|们|很|像|，|但是|不|一样|。
请|比较|第|一|张|图片|和|第|二|张|图片|。
有|人|在|笑|吗|？|照片|清楚|吗|？|照片|很|清楚|。|照片|很|模糊|。
最|大|的|图形|在|中间|，|最|小|的|图形|在|边|上|。
""".splitlines()


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def answer_lines() -> Iterator[str]:
    for words in (COLOURS, SHAPES, CLOTHES, THINGS, NUMBERS, PLACES, CORNERS, SCENES):
        for english, chinese in words.items():
            yield f"{english}|{english.capitalize()}|{chinese}|, {english}"
    yield from ("system", "user", "assistant", "yes", "no", "Yes", "No", "是", "不是", "有", "没有")


def colour_lines() -> Iterator[str]:
    for (colour, colour_zh), (shape, shape_zh) in product(COLOURS.items(), SHAPES.items()):
        yield f"What colour is the {shape}? The {shape} is {colour}."
        yield f"Is there {article(colour)} {shape} in the picture? Yes, there is {article(colour)} {shape}."
        yield f"{shape_zh}|是|什么|颜色|？|{shape_zh}|是|{colour_zh}|的|。|图片|里|有|{colour_zh}|的|{shape_zh}|吗"


def counting_lines() -> Iterator[str]:
    for (number, number_zh), (shape, shape_zh) in product(NUMBERS.items(), SHAPES.items()):
        noun = shape if number == "one" else plural(shape)
        yield f"How many {plural(shape)} are there? {number.capitalize()} {noun}. There are {number} {noun}."
        yield f"图片|里|有|几|个|{shape_zh}|？|有|{number_zh}|个|{shape_zh}|。"
    for digit in range(10):
        yield f"There are {digit} shapes in the image.|图片|里|有 {digit} 个|图形|。"


def position_lines() -> Iterator[str]:
    for ((first, first_zh), (second, second_zh)), (place, place_zh) in product(
        zip(SHAPES.items(), reversed(SHAPES.items()), strict=True), PLACES.items()
    ):
        yield f"Is the {first} {place} the {second}? No, the {second} is {place} the {first}."
        yield f"{first_zh}|在|{second_zh}|的|{place_zh}|吗|？|不是|，|{second_zh}|在|{first_zh}|的|{place_zh}|。"
    for (shape, shape_zh), (corner, corner_zh) in product(SHAPES.items(), CORNERS.items()):
        yield f"Where is the {shape}? The {shape} is in the {corner}.|{shape_zh}|在|哪里|？|{corner_zh}|。"


def clothes_lines() -> Iterator[str]:
    for (garment, garment_zh), (colour, colour_zh) in product(CLOTHES.items(), COLOURS.items()):
        yield f"What piece of clothing is this? It is {article(colour)} {garment}."
        yield f"这|是|什么|衣服|？|这|是|{colour_zh}|的|{garment_zh}|。"


def photograph_lines() -> Iterator[str]:
    for (thing, thing_zh), (scene, scene_zh) in product(THINGS.items(), SCENES.items()):
        yield f"A photograph of {article(thing)} {scene}. The photo shows {article(thing)}."
        yield f"一|张|照片|，|{thing_zh}|{scene_zh}|。|照片|里|有|{thing_zh}|。"


def lines() -> list[str]:
    """Return the corpus, always in the same order; a ``|`` in a template parts two lines.

    Chinese is parted word by word: it has no spaces, so that the merges would else be spent on word pairs.
    """
    templates = (colour_lines(), counting_lines(), position_lines(), clothes_lines(), photograph_lines())
    # A template comes back for each of its fillings, a plain sentence only as often as it is repeated here.
    plain = [*GENERAL * 24, *[*answer_lines()] * 12, *[*questions.corpus()] * 3]
    return [piece for line in (*plain, *chain(*templates)) for piece in line.split("|")]
