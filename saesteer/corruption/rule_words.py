"""Words that the rules draw from, written for the project."""

from __future__ import annotations

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate",
    "Leo", "Maria", "Noah", "Olivia", "Peter", "Rose", "Sam", "Tina", "Victor",
)  # fmt: skip
CITIES = (
    "Berlin", "Boston", "Cairo", "Chicago", "Dublin", "Lima", "Lisbon", "London", "Madrid",
    "Milan", "Oslo", "Paris", "Rome", "Sydney", "Tokyo", "Vienna",
)  # fmt: skip
NOUNS = [
    "apple", "bird", "boat", "book", "bread", "bridge", "car", "chair", "clock", "cloud", "coat",
    "dog", "door", "field", "fire", "fish", "garden", "glass", "hand", "hill", "horse", "house",
    "key", "lake", "lamp", "leaf", "letter", "moon", "paper", "rain", "ring", "river", "road",
    "rock", "ship", "snow", "star", "stone", "table", "train", "tree", "wall", "water", "window",
]  # fmt: skip
COUNTED = [
    ("apple", "apples"), ("bird", "birds"), ("book", "books"), ("bottle", "bottles"),
    ("box", "boxes"), ("boy", "boys"), ("car", "cars"), ("cat", "cats"), ("chair", "chairs"),
    ("child", "children"), ("cup", "cups"), ("dog", "dogs"), ("door", "doors"), ("girl", "girls"),
    ("house", "houses"), ("key", "keys"), ("lamp", "lamps"), ("letter", "letters"),
    ("man", "men"), ("picture", "pictures"), ("plant", "plants"), ("river", "rivers"),
    ("shoe", "shoes"), ("table", "tables"), ("teacher", "teachers"), ("tree", "trees"),
    ("window", "windows"), ("woman", "women"),
]  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("happy", "sad"), ("light", "dark"),
    ("fast", "slow"), ("hard", "soft"), ("old", "young"), ("rich", "poor"), ("strong", "weak"),
    ("high", "low"), ("full", "empty"), ("open", "closed"), ("wet", "dry"), ("early", "late"),
    ("good", "bad"), ("left", "right"), ("near", "far"), ("clean", "dirty"), ("thick", "thin"),
    ("loud", "quiet"), ("true", "false"), ("first", "last"), ("long", "short"), ("deep", "shallow"),
    ("wide", "narrow"), ("sharp", "blunt"), ("inside", "outside"), ("above", "below"),
    ("always", "never"), ("buy", "sell"), ("win", "lose"),
)  # fmt: skip
CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"),
    ("Japan", "Tokyo"), ("China", "Beijing"), ("Russia", "Moscow"), ("Egypt", "Cairo"),
    ("Greece", "Athens"), ("Portugal", "Lisbon"), ("Austria", "Vienna"), ("Poland", "Warsaw"),
    ("Hungary", "Budapest"), ("Norway", "Oslo"), ("Sweden", "Stockholm"), ("Finland", "Helsinki"),
    ("Denmark", "Copenhagen"), ("Ireland", "Dublin"), ("England", "London"), ("Peru", "Lima"),
    ("Cuba", "Havana"), ("Canada", "Ottawa"), ("Argentina", "Buenos Aires"), ("Chile", "Santiago"),
    ("Thailand", "Bangkok"), ("South Korea", "Seoul"), ("Kenya", "Nairobi"), ("Turkey", "Ankara"),
    ("Belgium", "Brussels"), ("Australia", "Canberra"), ("India", "New Delhi"), ("Iran", "Tehran"),
    ("Iraq", "Baghdad"), ("Ukraine", "Kyiv"), ("Vietnam", "Hanoi"), ("Indonesia", "Jakarta"),
    ("Lebanon", "Beirut"), ("Syria", "Damascus"), ("Afghanistan", "Kabul"),
    ("Romania", "Bucharest"),
    ("Bulgaria", "Sofia"), ("Serbia", "Belgrade"), ("Croatia", "Zagreb"), ("Scotland", "Edinburgh"),
)  # fmt: skip
FACTS = (
    ("The colour of grass is", "green"), ("The colour of blood is", "red"),
    ("The colour of a lemon is", "yellow"), ("The colour of snow is", "white"),
    ("The colour of coal is", "black"), ("The colour of a clear sky is", "blue"),
    ("The colour of a carrot is", "orange"), ("The colour of chocolate is", "brown"),
    ("A young dog is called a", "puppy"), ("A young cat is called a", "kitten"),
    ("A young cow is called a", "calf"), ("A young sheep is called a", "lamb"),
    ("A young bear is called a", "cub"), ("A young horse is called a", "foal"),
    ("Honey is made by", "bees"), ("Bread is made from", "flour"), ("Cheese is made from", "milk"),
    ("Wine is made from", "grapes"), ("Paper is made from", "wood"), ("Glass is made from", "sand"),
    ("Wool comes from", "sheep"), ("Eggs come from", "hens"), ("Apples grow on", "trees"),
    ("The number of sides of a triangle is", "three"),
    ("The number of sides of a square is", "four"), ("The number of legs of a dog is", "four"),
    ("The number of legs of a spider is", "eight"), ("The number of legs of an insect is", "six"),
    ("The number of days in a week is", "seven"), ("The number of months in a year is", "twelve"),
    ("The sun rises in the", "east"), ("The sun sets in the", "west"),
    ("Frozen water is called", "ice"), ("Boiling water turns into", "steam"),
    ("A person who teaches is a", "teacher"), ("A person who bakes bread is a", "baker"),
    ("A person who flies a plane is a", "pilot"), ("A person who writes books is a", "writer"),
    ("A person who paints pictures is a", "painter"), ("We see with our", "eyes"),
    ("We hear with our", "ears"), ("We smell with our", "nose"), ("We taste with our", "tongue"),
    ("The planet we live on is", "Earth"), ("The largest ocean is the", "Pacific"),
    ("The coldest season is", "winter"), ("The warmest season is", "summer"),
    ("Fish live in", "water"), ("The king of the animals is the", "lion"),
    ("Books are borrowed from a", "library"), ("Sick people are treated in a", "hospital"),
    ("Money is kept in a", "bank"), ("A ship is led by its", "captain"),
    ("An orchestra is led by its", "conductor"),
)  # fmt: skip
