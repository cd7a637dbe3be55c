"""Small faults for C code: where an operator, bound, sign, constant, index, argument or statement can be wrong. For mutate.py.

The code is that of this project: formatted by clang-format, one statement a line, functions that end with a brace in the first column.
"""
import dataclasses
import hashlib
import re

TOKEN = re.compile(r"""
    (?P<skip> //[^\n]* | /\*.*?\*/ | ^[ \t]*\#(?:\\\n|[^\n])* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
  | (?P<number> \.?\d(?:[eEpP][+-]|[\w.])* )
  | (?P<word> [A-Za-z_]\w* )
  | (?P<mark> <<=|>>=|\.\.\.|[-+*/%&|^<>=!]=|&&|\|\||<<|>>|->|\+\+|--|[^\s\w] )""", re.S | re.M | re.X)

KINDS = ("arithmetic", "comparison", "sign", "constant", "index", "arguments", "statement")
ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "%": "/", "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "<<": ">>", ">>": "<<",
              "&": "|", "|": "&", "&&": "||", "||": "&&"}
COMPARISON = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
OPENS, CLOSES = {"(": ")", "[": "]", "{": "}"}, {")", "]", "}"}
KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "case", "else", "do", "goto", "default", "break", "continue"}
BODIES = ("FOR_VECTORS", "FINISH", "FINISH_ACTIVATION", "ACROSS")  # macros with statements as arguments
CONTROL = ("if", "for", "while", "switch")
TYPE_WORDS = {"const", "static", "struct", "enum", "union", "unsigned", "signed", "void", "bool", "char", "short", "int", "long", "float", "double", "real",
              "vec", "ivec", "uvec", "halves", "FILE", "FTS", "FTSENT", "DIR", "volatile", "extern", "typedef", "_Alignas", "register"}
TYPE = re.compile(r"[a-z]\w*_t$|[A-Z][A-Za-z]*[a-z]\w*$")  # size_t, Dataset

# Not drawn: the arguments of what only a reader sees (assertions, messages), and calls of which only a leak checker or a clock sees
# whether they are there (make sanitize looks for leaks).
NOTED = re.compile(r"(_Static_assert|static_assert|assert|die|warn|printf|__attribute__|__builtin_prefetch|NAME|PASTE)$")
QUIET = re.compile(r"(\w*free|f?close|pclose|\w+_(free|close)|\w+_destroy\w*|va_\w+|munmap|madvise|posix_fadvise|setvbuf|usleep|nanosleep)$")
COMMUTES = re.compile(r"(calloc\w*|strcmp|strncmp|strcasecmp|memcmp|f?(min|max)\w*|MIN|MAX|FMA|fmaf?)$")


@dataclasses.dataclass(frozen=True)
class Mutant:
    path: str
    function: str
    line: int    # from 1
    kind: str
    begin: int   # the expression or statement with the fault: characters
    end: int
    fault: str   # what takes its place; "" for a statement that is dropped
    before: str  # the line, stripped
    after: str
    rank: str    # the draw takes the smallest first: it depends on this line and the seed alone, so that a change elsewhere moves no other fault

    @property
    def name(self):
        return f"{self.path}: {self.before} => {self.after}"


def tokens(text):
    """-> [(kind, text, begin)] of the code alone: no comments, strings, characters, preprocessor lines"""
    return [(m.lastgroup, m.group(), m.start()) for m in TOKEN.finditer(text) if m.lastgroup != "skip"]


def brackets(toks):
    """-> {index of a bracket: index of its partner}, {index of a token: index of the bracket that it is in}"""
    partner, around, stack = {}, {}, []
    for i, (_, text, _) in enumerate(toks):
        if text in CLOSES and stack:
            partner[i] = stack.pop()
            partner[partner[i]] = i
        if stack:
            around[i] = stack[-1]
        if text in OPENS:
            stack.append(i)
    return partner, around


def digest(*parts):
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


class Source:
    def __init__(self, path, text):
        self.path, self.text, self.toks = path, text, tokens(text)
        self.partner, self.around = brackets(self.toks)
        self.starts = [0] + [m.end() for m in re.finditer("\n", text)]

    # ---------------------------------------------------------------- what a token is

    def at(self, i):
        return self.toks[i][1] if 0 <= i < len(self.toks) else ""

    def is_word(self, i):
        return 0 <= i < len(self.toks) and self.toks[i][0] == "word"

    def is_type(self, i):
        return self.is_word(i) and (self.at(i) in TYPE_WORDS or bool(TYPE.match(self.at(i))))

    def is_cast(self, close):
        begin = self.partner.get(close, close)
        return close - begin > 1 and self.is_type(begin + 1) and all(self.is_type(i) or self.at(i) == "*" for i in range(begin + 1, close))

    def ends_value(self, i):
        """Is token i the end of a value, so that an operator after it is a binary one?"""
        if self.at(i) == ")":
            return not self.is_cast(i) and self.at(self.partner.get(i, 0) - 1) not in CONTROL
        return self.at(i) == "]" or i >= 0 and self.toks[i][0] == "number" or self.is_word(i) and self.at(i) not in KEYWORDS and not self.is_type(i)

    def functions(self):
        """-> (name, first token of the body, last)"""
        i = 0
        while i < len(self.toks):
            if self.at(i) == "{" and i in self.partner:
                if self.at(i - 1) == ")":
                    before = self.partner[i - 1] - 1
                    yield self.at(before - 1 if self.at(before) == ")" else before), i, self.partner[i]  # NAME(tile)(…): tile
                i = self.partner[i]
            i += 1

    def declares(self, i):
        """Is the statement that begins at token i a declaration?"""
        return self.is_type(i) or self.is_word(i) and self.at(i) not in KEYWORDS and (
            self.is_word(i + 1) or self.at(i + 1) == "*" and self.is_word(i + 2) and self.at(i + 3) in "=;,[")

    def statement_of(self, i):
        """-> the first token of the statement that token i is in"""
        while i > 0 and self.at(i - 1) not in "{};":
            i -= 1
        return i

    def begins_statement(self, i):
        before, around = self.at(i - 1), self.around.get(i, 0)
        if self.at(around) == "(" and self.at(around - 1) == "for":
            return False
        control = before == ")" and self.at(self.partner.get(i - 1, 0) - 1) in ("if", "for", "while")
        return before in ("{", "}", ";", "else") or control

    # ---------------------------------------------------------------- faults

    def whole_expression(self, i):
        """-> first and last + 1 token of the whole expression that token i is in: the value of an initializer, a condition, a statement.
        None where there is no such thing."""
        first = i
        while True:
            before = self.at(first - 1)
            partner = self.partner.get(first - 1, 0)
            if before == "}" and self.is_cast(partner - 1):
                first = partner
            elif before in (")", "]") and self.at(partner - 1) not in CONTROL:
                first = partner
            elif before in ("{", "}", ";", ")", "return", "else", "do") or before == "(" and self.at(first - 2) in CONTROL:
                break
            elif before == "," and self.at(self.around.get(first, 0) - 1) in BODIES:
                break
            elif first == 0 or before in ("case", "default", "goto"):
                return None
            else:
                first -= 1
        last, inside = i, sum(1 for k in range(first, i) if self.at(k) in OPENS and self.partner.get(k, 0) >= i)
        while self.at(last) != ";":
            if self.at(last) in CLOSES:
                if not inside:
                    break
                inside -= 1
            last = self.partner[last] + 1 if self.at(last) in OPENS else last + 1
        if inside or self.at(first) in BODIES:  # a statement within the arguments of a macro
            return None
        initializer = self.at(first - 1) == "{" and (self.at(first - 2) in ("=", ",", "{", "return") or self.is_cast(first - 2))
        if initializer or self.declares(first):
            return self.initial_value(first, last, i, initializer)
        return first, last

    def initial_value(self, first, last, i, initializer):
        """The same within `name = value, …` or `{value, .name = value, …}`."""
        begin, k = first if initializer else None, first
        while k < last:
            if k > i and self.at(k) == ",":
                last = k
            elif k <= i and self.at(k) == ",":
                begin = k + 1 if initializer else None
            elif k <= i and self.at(k) == "=":
                begin = k + 1
            k = self.partner[k] + 1 if self.at(k) in OPENS else k + 1
        return None if begin is None or begin > i else (begin, last)

    def plain_text(self, begin, end):
        """Without comments and line ends; None with a preprocessor line in it."""
        text = TOKEN.sub(lambda m: " " if m.group().startswith(("//", "/*")) else m.group(), self.text[begin:end])
        return None if re.search(r"^[ \t]*#", text, re.M) else re.sub(r"\s+", " ", text)

    def mutant(self, function, token, kind, begin, end, text, seed):
        line = self.text.count("\n", 0, begin)
        stop = self.text.find("\n", max(begin, end - 1))
        whole = self.text[self.starts[line]:stop]
        after = self.text[self.starts[line]:begin] + text + self.text[end:stop]
        before, after = (re.sub(r"\s+", " ", re.sub(r"//[^\n]*", "", part)).strip() for part in (whole, after))
        again = self.text.count(whole, 0, begin)  # of equal lines, which
        rank = digest(seed, self.path, function, before, after, again)
        if kind == "statement":
            return Mutant(self.path, function, line + 1, kind, begin, end + 1, "", before, after, rank)
        span = self.whole_expression(token)
        if span is None or span[0] >= span[1]:
            return None
        first, last = self.toks[span[0]][2], self.toks[span[1]][2]
        one, two = self.plain_text(first, begin), self.plain_text(end, last)
        if begin < first or end > last or one is None or two is None:
            return None
        return Mutant(self.path, function, line + 1, kind, first, last, one + text + two, before, after, rank)

    def mutants(self, seed, wanted=""):
        """Every fault of the functions whose name matches the expression `wanted`."""
        found = []
        for name, first, last in self.functions():
            if re.search(wanted, name):
                found += [self.mutant(name, *fault, seed) for fault in self.faults(first, last)]
        return [m for m in found if m and m.before != m.after]

    def faults(self, first, last):
        """-> (token, kind, begin, end, text) of each fault between two tokens"""
        i = first + 1
        while i < last:
            if self.at(i + 1) == "(" and (NOTED.match(self.at(i)) or QUIET.match(self.at(i))):
                if self.at(i) == "die" and self.begins_statement(i):
                    yield from self.statement(i)
                i = self.partner[i + 1] + 1
                continue
            kind, text, begin = self.toks[i]
            value = self.ends_value(i - 1)
            if value and text in ARITHMETIC:
                yield i, "arithmetic", begin, begin + len(text), ARITHMETIC[text]
            elif value and text in COMPARISON:
                yield i, "comparison", begin, begin + len(text), COMPARISON[text]
            elif not value and text in ("-", "!"):
                yield i, "sign", begin, begin + 1, ""
            elif text == "if" and self.at(i + 1) == "(":
                yield i + 2, *self.negated(i + 1)
            elif kind == "number" and not (self.at(i - 1) == "[" and self.declares(self.statement_of(i))):
                yield i, *self.constant(text, begin)
            elif text == "[" and value and self.partner[i] > i + 1 and self.toks[i + 1][0] != "number":
                yield from self.index(i)
            elif text == "(" and self.is_word(i - 1) and self.at(i - 1) not in KEYWORDS and not COMMUTES.match(self.at(i - 1)):
                yield from self.arguments(i)
            if self.begins_statement(i):
                yield from self.statement(i)
            i += 1

    def between(self, i, k):
        return self.text[self.toks[i][2]:self.toks[k][2]]

    def one_off(self, begin):
        """One more, or one less: it depends on the place in the line."""
        return "+ 1" if (begin - self.text.rfind("\n", 0, begin)) % 2 else "- 1"

    def negated(self, i):
        close = self.partner[i]
        return "sign", self.toks[i + 1][2], self.toks[close][2], "!(" + self.between(i + 1, close) + ")"

    def constant(self, text, begin):
        hexadecimal = text.lower().startswith("0x")
        if re.search("[.pP]", text) or not hexadecimal and re.search("[eE]", text):
            zero = not hexadecimal and float(text.rstrip("fFlL")) == 0
            new = "0.1f" if zero else f"({text} * 1.1f)"
        else:
            new = "1" if text == "0" else f"({text} {self.one_off(begin)})"
        return "constant", begin, begin + len(text), new

    def index(self, i):
        """One too far or too near; not in the declaration of an array."""
        begin = self.statement_of(i)
        if self.declares(begin) and "=" not in self.between(begin, i):
            return
        inner, close = self.toks[i + 1][2], self.toks[self.partner[i]][2]
        yield i, "index", inner, close, f"{self.text[inner:close]} {self.one_off(inner)}"

    def arguments(self, i):
        """Each two neighbours, swapped."""
        close, cuts, k = self.partner[i], [i], i + 1
        while k < close:
            if self.at(k) == ",":
                cuts.append(k)
            k = self.partner[k] + 1 if self.at(k) in OPENS else k + 1
        cuts.append(close)
        parts = [(self.toks[cuts[n] + 1][2], self.toks[cuts[n + 1]][2]) for n in range(len(cuts) - 1) if cuts[n + 1] > cuts[n] + 1]
        for (a, b), (c, d) in zip(parts, parts[1:]):
            one, other = self.text[a:b].strip(), self.text[c:d].strip()
            if one != other and "NULL" not in (one, other):
                yield i, "arguments", a, d, f"{other}, {one}"

    def statement(self, i):
        """Dropped: an assignment, a call, a jump."""
        if self.at(i) in ("break", "continue"):
            yield i, "statement", self.toks[i][2], self.toks[i + 1][2], ""
        if not (self.is_word(i) or self.at(i) in ("*", "++", "--")) or self.at(i) in KEYWORDS or self.declares(i):
            return
        k = i
        while self.at(k) != ";":
            if self.at(k) in "{}" or self.at(k) == ":":  # not an expression statement
                return
            k = self.partner[k] + 1 if self.at(k) in OPENS else k + 1
        yield i, "statement", self.toks[i][2], self.toks[k][2], ""


def draw(mutants):
    """The same in an order for drawing: the kinds take turns, each sorted by rank."""
    kinds = {}
    for m in sorted(mutants, key=lambda m: m.rank):
        kinds.setdefault(m.kind, []).append(m)
    turns = [kinds[kind] for kind in sorted(kinds, key=lambda kind: digest(mutants[0].path, kind))]
    return [turn[n] for n in range(max(map(len, turns), default=0)) for turn in turns if n < len(turn)]


def switched(text, numbered):
    """The text of a file with all of [(number, mutant)] in it: expressions become `MUTANT(n) ? fault : as it is`, statements `if (!MUTANT(n))`.
    Every line keeps its number."""
    source = Source("", text)
    spans = {}
    for number, m in numbered:
        spans.setdefault((m.begin, m.end, m.kind == "statement"), []).append((number, m))
    inside = [(begin, end, of_span) for (begin, end, statement), of_span in spans.items() if not statement]
    changes = []
    for begin, end, of_span in inside:
        plain = source.plain_text(begin, end)
        new = "(" + "".join(f"MUTANT({number}) ? ({m.fault}) : " for number, m in of_span) + f"({plain}))"
        changes.append((begin, end, new + "\n" * text.count("\n", begin, end)))
    for begin, end, statement in spans:
        if statement:
            conditions = " && ".join(f"!MUTANT({number})" for number, _ in spans[begin, end, True])
            changes += [(begin, begin, "{ if (" + conditions + ") "), (end, end, " }")]
    for begin, end, new in sorted(changes, key=lambda c: (c[0], c[1]), reverse=True):
        text = text[:begin] + new + text[end:]
    return text
