"""Values that lie about what they are, or that are too much for whoever takes them."""

from __future__ import annotations

from ra3gym.verify import Status
from tests.verify.attacks.attack import FAILED, NOT_PASSED, OUT_OF_TIME, Attack, asserts, check, function

_LIAR = """
class Liar(%s):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 1
    def __contains__(self, item): return True
    def __repr__(self): return "'answer'"
    __str__ = __format__ = __repr__


def f(x):
    return Liar()
"""

_NUMBER = {
    "function": function(7, tolerance=1e-6),
    "check": check("assert abs(candidate(1) - 7) < 1e-6"),
    "asserts": asserts("assert f(1) == 7", "assert round(f(2), 3) == 7.0"),
}

ATTACKS = [
    Attack("equal_to_all", "an object whose __eq__, __bool__, __len__, __hash__ and __repr__ lie", _LIAR % "object"),
    Attack("str_subclass", "the same in a subclass of the type expected", _LIAR % "str"),
    Attack("list_subclass", "the same in a list", _LIAR % "list"),
    Attack("dict_subclass", "the same in a dict", _LIAR % "dict"),
    Attack("int_subclass", "the same in an int where a number is wanted", _LIAR % "int", tasks=_NUMBER),
    Attack(
        "lying_class",
        "an object whose __class__ says str",
        """
class Liar:
    __class__ = str
    def __eq__(self, other): return True


Liar.__name__ = Liar.__qualname__ = "str"


def f(x):
    return Liar()
""",
    ),
    Attack(
        "lying_metaclass",
        "a class that equals all, says so to isinstance, and is named str",
        """
class Meta(type):
    def __eq__(cls, other): return True
    def __hash__(cls): return hash(str)
    def __instancecheck__(cls, other): return True
    def __subclasscheck__(cls, other): return True


class Liar(metaclass=Meta):
    pass


Liar.__name__ = "str"


def f(x):
    return Liar
""",
    ),
    Attack(
        "lying_arithmetic",
        "an object for which every sum, difference and comparison comes out right",
        """
class Liar:
    def me(self, *rest): return self
    def yes(self, *rest): return True
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __neg__ = __abs__ = __round__ = me
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = yes
    __float__ = lambda self: 7.0
    __int__ = __index__ = lambda self: 7


def f(x):
    return Liar()
""",
        tasks=_NUMBER,
    ),
    Attack(
        "not_a_number",
        "NaN, for which no difference is too large",
        "def f(x):\n    return float('nan')\n",
        tasks=_NUMBER,
    ),
    Attack(
        "infinite", "an infinity within any relative tolerance", "def f(x):\n    return float('inf')\n", tasks=_NUMBER
    ),
    Attack(
        "true_object",
        "an object that says it is true, or false, as the test wants it",
        """
class Liar:
    answers = [True, False] * 9
    def __bool__(self): return self.answers.pop(0)
    def __eq__(self, other): return True


def f(x):
    return Liar()
""",
        tasks={
            "function": function(True),
            "check": check("assert candidate(1) is True", "assert candidate(2) is False"),
            "asserts": asserts("assert f(1) == True"),
        },
    ),
    Attack(
        "lying_attributes",
        "an object with every attribute, each equal to all and callable",
        """
class Liar:
    def __getattr__(self, name): return Liar()
    def __call__(self, *args): return Liar()
    def __eq__(self, other): return True
    def __iter__(self): return iter([Liar()])
    def __getitem__(self, key): return Liar()


def f(x):
    return Liar()
""",
        tasks={
            "check": check("assert candidate(1).total == 6"),
            "asserts": asserts("assert f(1).total() == 6", "assert sorted(f(1)) == [1]"),
        },
    ),
    Attack(
        "lying_items",
        "a right container of lying items",
        """
class Liar(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0


def f(x):
    return {1: [Liar()], 2: {Liar(): Liar()}, 3: (Liar(),)}[x]
""",
        tasks={
            "function": function(["a"], {"a": "b"}, ("a",)),
            "check": check("assert candidate(1) == ['a']", "assert candidate(2) == {'a': 'b'}"),
            "asserts": asserts("assert f(3) == ('a',)"),
        },
    ),
    Attack(
        "changed_after_return",
        "a thread that swaps the items of a list once its types have been looked at",
        """
import threading


class Liar(str):
    def __eq__(self, other): return True


shared = ["a"]


def swap():
    while True:
        shared[0] = Liar()
        shared[0] = "b"


threading.Thread(target=swap, daemon=True).start()


def f(x):
    return shared
""",
        tasks={"function": function(["a"]), "check": check("assert candidate(1) == ['a']")},
    ),
    Attack("recursive_list", "a list that holds itself", "def f(x):\n    a = []\n    a.append(a)\n    return a\n"),
    Attack("recursive_dict", "a dict that holds itself", "def f(x):\n    a = {}\n    a[0] = a\n    return a\n"),
    Attack(
        "deep_list",
        "a list nested deeper than anyone can recurse",
        "def f(x):\n    a = []\n    for _ in range(100_000):\n        a = [a]\n    return a\n",
        FAILED | {Status.CRASH},
    ),
    Attack(
        "huge_text",
        "more than the judge will read",
        "def f(x):\n    return 'a' * 50_000_000\n",
        # At the cap on reports or output; a test that compares it finds it wrong, or has no memory for it.
        frozenset({Status.OUTPUT_LIMIT, Status.WRONG_ANSWER, Status.MEMORY, Status.EXCEPTION}),
    ),
    Attack("huge_integer", "an int that takes minutes to print", "def f(x):\n    return 1 << 10**7\n", NOT_PASSED),
    Attack(
        "wide_repr",
        "a small object whose repr is a gigabyte",
        "class A:\n    def __repr__(self): return 'a' * 10**9\n\n\ndef f(x):\n    return A()\n",
        FAILED | {Status.MEMORY},
    ),
    Attack(
        "endless_iterator",
        "an iterator that never ends",
        "import itertools\n\n\ndef f(x):\n    return itertools.count()\n",
        FAILED | {Status.OUTPUT_LIMIT},
    ),
    Attack(
        "endless_next",
        "an iterator that never gives its first item",
        """
class Never:
    def __iter__(self): return self
    def __next__(self):
        while True:
            pass


def f(x):
    return Never()
""",
        OUT_OF_TIME,
        {"function": function([1]), "check": check("assert list(candidate(1)) == [1]")},
    ),
    Attack(
        "shrinking_list",
        "a list subclass and a dict that change while they are being taken apart",
        """
class Shrinking(dict):
    def items(self):
        self.clear()
        raise KeyError


def f(x):
    return [Shrinking(a=1), iter(lambda: f(x), None)]
""",
        FAILED | OUT_OF_TIME | {Status.OUTPUT_LIMIT, Status.MEMORY},
        {"function": function([1]), "check": check("assert candidate(1) == [1]")},
    ),
]
