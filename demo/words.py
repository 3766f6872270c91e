"""The vocabulary of the synthetic pictures: colours, kinds of shapes, positions, printed words.

Pure data. Knows nothing of drawing, of questions or of any tokenizer.
"""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 38),
    "green": (40, 150, 60),
    "blue": (38, 80, 210),
    "yellow": (245, 215, 40),
    "orange": (245, 135, 25),
    "purple": (125, 45, 165),
    "pink": (250, 140, 190),
    "brown": (125, 75, 35),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
    "gray": (140, 140, 140),
}
KINDS = ("circle", "square", "triangle", "star", "diamond", "heart", "cross", "ring")
SIZES = ("small", "large")
POSITIONS = (
    "top left",
    "top center",
    "top right",
    "middle left",
    "center",
    "middle right",
    "bottom left",
    "bottom center",
    "bottom right",
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "light gray": (222, 222, 222),
    "light blue": (205, 225, 250),
    "cream": (252, 244, 220),
    "light green": (214, 240, 214),
    "black": (12, 12, 16),
    "dark blue": (18, 28, 70),
}
CLASHES: dict[str, frozenset[str]] = {
    "white": frozenset({"white"}),
    "light gray": frozenset({"white", "gray"}),
    "light blue": frozenset({"white"}),
    "cream": frozenset({"white", "yellow"}),
    "light green": frozenset({"white"}),
    "black": frozenset({"black"}),
    "dark blue": frozenset({"black", "blue"}),
}
"""Shape colours that would be hard to see on each background, for people too."""

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FRUITS = ("Apple", "Pear", "Plum", "Grape", "Lemon", "Peach", "Mango", "Melon", "Kiwi", "Lime", "Fig")
ANIMALS = ("Cat", "Dog", "Bird", "Fish", "Horse", "Cow", "Pig", "Sheep", "Goat", "Duck", "Bear", "Fox")
PEOPLE = (
    "Anna",
    "Ben",
    "Carl",
    "Dora",
    "Emma",
    "Fred",
    "Gina",
    "Hugo",
    "Ivan",
    "Jane",
    "Kate",
    "Leo",
    "Mia",
    "Nina",
    "Otto",
    "Paul",
    "Rosa",
    "Sam",
    "Tom",
    "Zoe",
)
CITIES = (
    "Paris",
    "Rome",
    "Oslo",
    "Cairo",
    "Lima",
    "Delhi",
    "Tokyo",
    "Bern",
    "Quito",
    "Riga",
    "Milan",
    "Dubai",
)
GOODS = (
    "Tea",
    "Milk",
    "Bread",
    "Eggs",
    "Rice",
    "Soup",
    "Cake",
    "Juice",
    "Water",
    "Apple",
    "Salad",
    "Pizza",
    "Pasta",
    "Beer",
    "Wine",
    "Fish",
    "Soap",
    "Salt",
    "Sugar",
    "Honey",
    "Butter",
    "Cheese",
    "Coffee",
    "Beans",
)
SHOPS = ("MARKET", "CAFE", "BAKERY", "SHOP", "STORE", "DELI", "GROCER", "DINER", "KIOSK", "BISTRO")
CATEGORIES: tuple[tuple[str, ...], ...] = (MONTHS, DAYS, FRUITS, ANIMALS, PEOPLE, CITIES, GOODS)

_PRINTED = """
able above acid actor adult again agent air alarm album alert allow alone amber angel anger angle animal
apple april arch area arm army art artist atlas atom aunt auto autumn award baby back bacon badge bag baker
ball banana band bank bar barn base basic basket bath battle beach bean bear beauty bed bee beef bell belt
bench best big bike bill bird birth black blade blank blind block blood blue board boat body bold bolt bond
bone book boot border bottle bottom bowl box brain branch brave bread break bridge bright broad brown brush
bubble bucket budget build bus busy butter button buy cabin cable cake call calm camera camp canal candle
candy canyon cap car carbon card care carpet carrot cart case cash castle cat cave cell center chain chair
chalk chance change cheap check cheese chef cherry chess chest child choice church cinema circle city clay
clean clear clerk clever cliff clock close cloth cloud club coach coal coast coat coffee coin cold color
comb corn corner cotton couch count couple course court cousin cover cow craft cream credit crew crisp cross
crowd crown cup cycle daily dairy dance danger dark data date dawn day deal dear deep deer degree desert
design desk detail diary dinner dirt doctor dog doll dollar donkey door double draft dragon drama dream
dress drill drink drive drop drum dry duck dust eagle early earth east easy echo edge effect egg eight elbow
empty energy engine enjoy enter entry equal escape event exam exit expert extra eye fabric face fact fair
fall family famous farm fast father fence ferry field figure file film final find fine finger fire first
fish five flag flame flat flight floor flour flow flower fly focus food foot force forest fork form fort
four fox frame free fresh friend frog front frost fruit fuel full future galaxy game garage garden gas gate
ghost giant gift ginger girl glass globe glove goal goat gold golf good grain grand grape grass great green
grid group guard guest guide guitar hair half hall hammer hand happy harbor hard hat heart heavy height help
hero hidden high hill hobby home honest honey hope horse hotel hour house human hunt ice idea inch inside
iron island ivory jacket jam jar jazz jeans jelly jewel job join joke joy judge juice july jump june jungle
junior just keep kettle key kind king kiosk kit kitten knee knife knight knot label ladder lake lamp land
large laser last late laugh lawn layer leader leaf learn left legal lemon lesson letter level life lift
light lime limit line lion liquid list little local lock logic long lost loud love lucky lunch machine magic
mail main major mango map maple march marble mark market master match matter meadow meal medal melon member
memory menu metal middle mile milk mill mind mini minute mirror mixed mobile model modern moment money
monkey month moon moral more motion motor mouse mouth movie music name narrow nation nature near neck nest
network never new news next nice night nine noble noise north nose note number nurse oak ocean offer office
oil old olive onion open opera orange order other oval oven owl owner oxygen pack page paint pair palace
palm panda panel paper parade parent park part party pass pasta path peace peach pearl pen pencil people
pepper perfect photo piano picnic pilot pine pink pipe pizza place plain plan planet plant plate play please
plum pocket poem point police pond pony pool pop port post potato power press price pride prince print prize
public pull pump pupil puppy purple push puzzle queen quick quiet rabbit race radio rail rain ranch rapid
ready real record red region relax rest rice rich ride right ring river road robin robot rock rocket roof
room root rope rose round route royal ruby rule run rural safe sail salad sale salt sample sand sauce school
sea season seat second secret seed senior seven shadow shape share shark sharp sheep sheet shelf shell shine
ship shirt shoe shop short show shower side signal silent silk silver simple single sister six skill skin
sky sleep slice slow small smart smile smoke smooth snack snake snow soap social socks soda sofa soft soil
solar solid song sound soup south space spark speed spice spider spiral spoon sport spring square stable
stage stairs stamp star start state statue steak steam steel step stick still stone stop store storm story
stove street strong studio style subway sugar suit summer sun sunny super supply sure swan sweet swim switch
table tail talent tall tango tank tape target task taste tax taxi tea teach team temple ten tennis tent test
text thanks think three ticket tidy tiger time tiny tip title toast today tomato tool tooth top torch total
tour towel tower town toy track trade train tram trap travel tree trend tribe trip truck true trust truth
tube tulip tunnel turtle twin two uncle under union unique unit urban useful valley value van vast velvet
video view villa violet violin visit vital voice volume wagon wait walk wall wallet warm wash watch water
wave way wealth west whale wheat wheel white whole wide wild wind window wine wing winner winter wise wish
wolf wonder wood wool word work world yard year yellow yes yoga young youth zebra zero zone zoo
"""
WORDS: tuple[str, ...] = tuple(_PRINTED.split())
