"""What photos of a class also show: general knowledge, written by hand, as probabilities.

An image classifier's classes name one thing of a photo. ``RULES`` gives kinds or names of classes, and how likely a
photo of one also shows something else; ``WORDINGS`` gives the texts of each such concept.
"""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


RULES: tuple[tuple[tuple[str, ...], dict[str, float]], ...] = (
    (_names("clothing, garment, headdress, footwear"), {"person": 0.8}),
    (
        _names(
            """
            jersey, suit, gown, academic gown, bikini, maillot, swimming trunks, brassiere, sweatshirt, jean,
            cardigan, kimono, abaya, poncho, sarong, miniskirt, overskirt, lab coat, trench coat, fur coat,
            military uniform, bulletproof vest, bow tie, Windsor tie, bolo tie, sunglasses, sunglass, wig,
            lipstick, hair spray, neck brace, mask, ski mask, gasmask, cowboy hat, sombrero, mortarboard,
            bearskin, pickelhaube, crash helmet, football helmet, bathing cap, bonnet, shower cap, stole,
            feather boa, apron, pajama, diaper, breastplate, cuirass, chain mail, cloak, vestment
            """
        ),
        {"person": 0.85, "face": 0.6},
    ),
    (_names("groom, ballplayer, scuba diver"), {"person": 1.0}),
    (_names("musical instrument"), {"person": 0.55, "room": 0.4}),
    (_names("sports equipment, game equipment, ball"), {"person": 0.45}),
    (
        _names(
            """
            barbell, dumbbell, balance beam, horizontal bar, parallel bars, racket, basketball, volleyball,
            rugby ball, ping-pong ball, punching bag, unicycle, bobsled, ski, scuba diver, snorkel, paddle, bow,
            croquet ball
            """
        ),
        {"person": 0.8, "sport": 0.9},
    ),
    (
        _names(
            """
            stage, barbershop, restaurant, grocery store, school bus, barber chair, rickshaw, jinrikisha,
            stretcher, swing, microphone, hand blower, pole, crutch, harmonica, cinema, bookshop
            """
        ),
        {"person": 0.5},
    ),
    (
        _names(
            """
            bicycle, motor scooter, moped, bicycle-built-for-two, mountain bike, tricycle
            """
        ),
        {"person": 0.5, "road": 0.65, "tree": 0.4},
    ),
    (_names("horse cart, oxcart, plow, dogsled"), {"person": 0.75, "animal": 0.9}),
    (_names("dogsled, snowmobile, ski, snowplow, bobsled, alp"), {"snow": 0.9, "sky": 0.5}),
    (_names("snowmobile, go-kart, canoe, gondola, lifeboat, speedboat"), {"person": 0.6}),
    (_names("boat, ship, vessel"), {"water": 0.93, "sky": 0.65}),
    (_names("fish, aquatic mammal, whale, jellyfish, sea anemone, coral"), {"water": 0.75}),
    (
        _names(
            """
            wading bird, aquatic bird, seabird, shorebird, duck, otter, hippopotamus, beaver
            """
        ),
        {"water": 0.75, "grass": 0.25},
    ),
    (_names("bird"), {"tree": 0.4, "sky": 0.25, "grass": 0.2}),
    (_names("dog"), {"grass": 0.35, "floor": 0.25, "person": 0.12}),
    (_names("domestic cat"), {"room": 0.55, "floor": 0.3}),
    (_names("ungulate"), {"grass": 0.65, "tree": 0.3, "sky": 0.25}),
    (_names("primate, bear, big cat, canine"), {"tree": 0.3, "grass": 0.3}),
    (_names("insect, butterfly, spider"), {"leaf": 0.65, "flower": 0.35, "plant": 0.7}),
    (_names("lizard, snake, amphibian, turtle"), {"rock": 0.3, "leaf": 0.3, "sand": 0.2}),
    (_names("motor vehicle"), {"road": 0.8, "sky": 0.4, "tree": 0.4, "building": 0.3}),
    (
        _names(
            """
            school bus, trolleybus, minibus, cab, police van, ambulance, streetcar, parking meter, traffic
            light, street sign, mailbox
            """
        ),
        {"road": 0.8, "street": 0.7, "building": 0.6, "sky": 0.3},
    ),
    (
        _names(
            """
            locomotive, passenger car, freight car, bullet train, electric locomotive, steam locomotive
            """
        ),
        {"railway": 0.9, "sky": 0.5, "tree": 0.5},
    ),
    (_names("aircraft, airliner, warplane, wing, airship, balloon, parachute"), {"sky": 0.93}),
    (
        _names(
            """
            building, house, tower, place of worship, castle, palace, monastery, mosque, church, stupa, dam,
            barn, boathouse, greenhouse, library, planetarium, water tower, beacon, triumphal arch, obelisk,
            totem pole, flagpole
            """
        ),
        {"building": 0.85, "sky": 0.75, "tree": 0.4},
    ),
    (_names("bridge"), {"sky": 0.75, "water": 0.6}),
    (_names("geological formation"), {"sky": 0.7, "rock": 0.55, "mountain": 0.4}),
    (_names("alp, volcano, cliff, valley"), {"mountain": 0.9, "sky": 0.85}),
    (
        _names(
            """
            seashore, sandbar, promontory, breakwater, pier, dock, lakeside, coral reef, geyser
            """
        ),
        {"water": 0.95, "sky": 0.75},
    ),
    (_names("seashore, sandbar"), {"beach": 0.9, "sand": 0.85, "sea": 0.95}),
    (_names("promontory, breakwater, pier, coral reef, dock"), {"sea": 0.75}),
    (_names("lakeside"), {"lake": 0.95, "tree": 0.6}),
    (_names("furniture"), {"room": 0.8, "floor": 0.55, "wall": 0.6}),
    (_names("home appliance"), {"room": 0.75, "wall": 0.3}),
    (
        _names(
            """
            stove, refrigerator, microwave, dishwasher, toaster, espresso maker, waffle iron, Dutch oven, frying
            pan, wok, caldron, teapot, coffeepot, mixing bowl, spatula, ladle, strainer, measuring cup,
            rotisserie
            """
        ),
        {"kitchen": 0.7, "room": 0.6},
    ),
    (
        _names(
            """
            washbasin, tub, bathtub, toilet seat, shower curtain, bath towel, medicine chest, plunger, soap
            dispenser
            """
        ),
        {"bathroom": 0.9, "room": 0.8},
    ),
    (
        _names(
            """
            four-poster, studio couch, quilt, pillow, crib, bassinet, cradle, wardrobe, chiffonier
            """
        ),
        {"bedroom": 0.75, "room": 0.85},
    ),
    (_names("dining table, china cabinet, patio"), {"chair": 0.8, "room": 0.6}),
    (
        _names(
            """
            desk, desktop computer, laptop, monitor, screen, computer keyboard, mouse, printer, photocopier,
            file
            """
        ),
        {"office": 0.65, "desk": 0.7, "room": 0.65},
    ),
    (
        _names(
            """
            home theater, entertainment center, television, window shade, sliding door, rocking chair,
            lampshade, table lamp
            """
        ),
        {"room": 0.9, "living room": 0.6, "furniture": 0.6},
    ),
    (_names("food, dish, dessert, edible fruit, vegetable"), {"food": 0.95, "table": 0.4, "plate": 0.35}),
    (
        _names(
            """
            plate, cup, coffee mug, soup bowl, goblet, red wine, espresso, beer glass, wine bottle, beer bottle,
            trifle, burrito, pizza, hotdog, cheeseburger, guacamole
            """
        ),
        {"table": 0.65, "food": 0.6, "drink": 0.3},
    ),
    (_names("mercantile establishment"), {"shop": 0.95, "building": 0.4}),
    (
        _names(
            """
            grocery store, confectionery, bakery, butcher shop, shoe shop, toyshop, bookshop, tobacco shop
            """
        ),
        {"shelf": 0.75, "shop": 1.0},
    ),
    (_names("flower, daisy, yellow lady's slipper"), {"flower": 1.0, "plant": 1.0, "grass": 0.4}),
    (_names("fungus"), {"grass": 0.35, "leaf": 0.4, "tree": 0.35}),
    (
        _names(
            """
            pot, greenhouse, hay, acorn, buckeye, corn, ear, rapeseed, picket fence, lawn mower, maze, golfcart,
            worm fence, swing, park bench, birdhouse
            """
        ),
        {"grass": 0.55, "plant": 0.55, "tree": 0.5},
    ),
    (_names("rapeseed, hay, thresher, harvester, tractor"), {"field": 0.85, "sky": 0.7}),
    (_names("lawn mower, croquet ball, golf ball, golfcart"), {"grass": 0.9}),
    (_names("picket fence, worm fence, chainlink fence, stone wall"), {"fence": 0.8, "grass": 0.5, "sky": 0.35}),
    (_names("stone wall, tile roof"), {"wall": 0.7, "building": 0.5}),
    (_names("seashore, alp, valley, cliff, lakeside, volcano, promontory, sandbar, geyser"), {"landscape": 0.9}),
    (_names("computer, electronic equipment"), {"electronics": 0.9}),
)

WORDINGS: dict[str, tuple[str, ...]] = {
    "person": _names("person, people, human, human being, man, woman, someone, individual, adult, persons"),
    "face": _names("face, human face, portrait"),
    "sky": _names("sky, blue sky, cloud, clouds"),
    "tree": _names("tree, trees, forest, woods"),
    "grass": _names("grass, lawn, meadow, green grass"),
    "water": _names("water, body of water, river"),
    "sea": _names("sea, ocean, seawater, waves"),
    "beach": _names("beach, shore, coast"),
    "sand": _names("sand, sandy ground"),
    "snow": _names("snow, winter landscape, ice and snow"),
    "road": _names("road, pavement, asphalt, highway"),
    "street": _names("street, city street, urban street, city"),
    "building": _names("building, buildings, architecture"),
    "mountain": _names("mountain, mountains, hill"),
    "rock": _names("rock, stone, rocks"),
    "wall": _names("wall, interior wall"),
    "floor": _names("floor, wooden floor, ground floor"),
    "room": _names("room, indoors, interior, indoor scene"),
    "kitchen": _names("kitchen, cooking area"),
    "bathroom": _names("bathroom, restroom"),
    "bedroom": _names("bedroom, hotel room"),
    "living room": _names("living room, lounge"),
    "office": _names("office, workplace"),
    "desk": _names("desk, office desk"),
    "chair": _names("chair, seat"),
    "furniture": _names("furniture"),
    "table": _names("table, tabletop"),
    "food": _names("food, meal, cooking"),
    "plate": _names("plate"),
    "drink": _names("drink, beverage"),
    "shop": _names("shop, store, supermarket"),
    "shelf": _names("shelf, shelves"),
    "flower": _names("flower, flowers, blossom"),
    "plant": _names("plant, plants, vegetation, greenery"),
    "leaf": _names("leaf, leaves, foliage"),
    "animal": _names("animal, animals"),
    "railway": _names("railway, railroad, railway track"),
    "lake": _names("lake, pond"),
    "field": _names("field, farmland"),
    "fence": _names("fence"),
    "landscape": _names("landscape, scenery, nature, outdoors"),
    "sport": _names("sport, sports"),
    "electronics": _names("electronics, electronic device"),
}
