"""The pickles inside of torch's files, read for dev/checkpoints.py by an interpreter that knows only the
opcodes of such files.

Nothing that a pickle names is imported or called, except the few functions of ADMITTED. Time and memory are
in proportion to the bytes of the pickle, by construction: every opcode takes a byte at least, costs no more
than the bytes it takes or the values it removes from the stack, and never looks into values that it only
refers to. That is why no tuple is hashed (a tuple of twice the same tuple, forty times over, has 2^40
parts), nothing is copied, and numbers are not hashed either (chosen ones would all meet in one place of a
dict); texts are hashed with a secret of the process.
"""
import struct
import typing

# class of a storage -> dtype, in the names of safetensors
TORCH_STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16",
                  "BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16",
                  "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL"}
MOST_OPCODES = 1 << 25    # a tensor takes about 35
LONGEST_NAME = 500        # characters of a tensor's name, or of what a pickle imports
LONGEST_INTEGER = 16      # bytes; the magic number of torch's older form has 10
LARGEST_SIZE = 1 << 63
MOST_AXES = 8


class Malformed(Exception):
    """The text says what is wrong with the pickle."""


def damaged(why):
    return Malformed(f"its pickle is damaged ({why})")


class Storage(typing.NamedTuple):  # immutable: a pickle cannot alter what was checked
    dtype: str
    key: str
    count: int


class Tensor(typing.NamedTuple):
    """A tensor as the pickle describes it: which numbers of which storage."""
    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class ScriptType(typing.NamedTuple):
    """A class of a TorchScript archive."""
    name: str


class ScriptModule:
    """A module of a TorchScript archive: its attributes."""
    __slots__ = ("attributes",)

    def __init__(self):
        self.attributes = {}


def is_count(x):
    return type(x) is int and 0 <= x < LARGEST_SIZE


def product(shape):
    n = 1
    for x in shape:
        n *= x
    return n


def span_of(shape, strides):
    """From the first to the last number of a tensor in its storage."""
    span = 1
    for n, s in zip(shape, strides):
        if not n:
            return 0
        span += (n - 1) * s
    return span


def key_of(x):
    """The key under which a value is stored in a dict. Numbers, which an optimizer's state has as keys,
    become texts."""
    if type(x) is str and len(x) <= LONGEST_NAME:
        return x
    if type(x) in (int, float, bool, type(None)):
        return str(x)
    raise damaged(f"a name of {len(x)} characters" if type(x) is str else f"a {type(x).__name__} as a key")


# ---------------------------------------------------------------- what a pickle may call

def rebuild_tensor(storage, offset, shape, strides, *_):
    if (type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple
        or not len(shape) == len(strides) <= MOST_AXES or not is_count(offset)):
        raise damaged("a malformed tensor")
    for n, s in zip(shape, strides):
        if not type(n) is type(s) is int or not 0 <= n < LARGEST_SIZE or not 0 <= s < LARGEST_SIZE:
            raise damaged("a tensor of impossible shape")
    if offset + span_of(shape, strides) > storage.count:
        raise damaged(f"a tensor reaches beyond its storage {storage.key}")
    return Tensor(storage, offset, shape, strides)


def new_dict(pairs=None):
    """OrderedDict(), or Python 2's OrderedDict([[key, value], …]). The list is used up, so that a pickle
    cannot have it copied again and again."""
    out = {}
    while pairs:
        key, value = pairs.pop()
        out.setdefault(key_of(key), value)
    return out


def first_argument(value, *_):
    return value


def nothing(*_):
    return None


# All that a pickle may name. Every right side is harmless with any arguments.
ADMITTED = {("collections", "OrderedDict"): new_dict, ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): first_argument,
            ("torch._utils", "_rebuild_parameter_with_state"): first_argument,
            ("torch.nn.parameter", "Parameter"): first_argument, ("torch", "Size"): first_argument,
            ("torch", "device"): nothing, ("torch.jit._pickle", "restore_type_tag"): first_argument,
            ("torch.jit._pickle", "build_intlist"): first_argument,
            ("torch.jit._pickle", "build_doublelist"): first_argument,
            ("torch.jit._pickle", "build_boollist"): first_argument,
            ("torch.jit._pickle", "build_tensorlist"): first_argument,
            **{("torch", name): None for name in ("float64", "float32", "float16", "bfloat16", "int64",
                                                  "int32", "int16", "int8", "uint8", "bool")},
            **{(module, name): dtype for name, dtype in TORCH_STORAGES.items()
               for module in ("torch", "torch.storage")}}
MOST_ARGUMENTS = 8  # of those that torch writes for them


# ---------------------------------------------------------------- the interpreter

class Pickle:
    """One pickle of a file, from its current position. load() gives what it describes: dicts, lists, tuples,
    texts, bytes, numbers, Tensor, ScriptModule. Then storages holds every Storage by its key, script_types
    the names of TorchScript's classes."""

    def __init__(self, file, size):
        """size: of the whole file, in bytes"""
        self.file, self.size = file, size
        # marks: the stacks below each mark. The memo's keys are the 4 bytes of an index
        self.stack, self.marks, self.memo = [], [], {}
        self.storages, self.script_types = {}, set()

    def load(self):
        try:
            for _ in range(MOST_OPCODES):
                code = self.file.read(1)
                if code == b".":
                    return self.stack.pop()
                if code not in OPCODES:
                    raise damaged(f"opcode {code!r}" if code else "ends early")
                OPCODES[code](self)
        except Malformed:
            raise
        except Exception as e:  # an empty stack, an unknown memo entry, a text that is not UTF-8, …
            raise damaged(type(e).__name__) from None
        raise Malformed(f"its pickle has more than {MOST_OPCODES} opcodes")

    # -------------------------------- bytes

    def take(self, n):
        # before reading: Python would reserve memory for all that is announced
        if n > 1 << 16 and n > self.size - self.file.tell():
            raise damaged(f"announces {n} bytes more than there are")
        data = self.file.read(n)
        if len(data) != n:
            raise damaged("ends early")
        return data

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self):
        line = self.file.readline(LONGEST_NAME)
        if line[-1:] != b"\n":
            raise damaged("a line without end")
        return line[:-1].decode("utf-8")

    # -------------------------------- numbers and texts

    def push_integer(self, size):
        if size > LONGEST_INTEGER:
            raise damaged(f"an integer of {size} bytes; a checkpoint needs none above 8")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def push_integer_line(self):
        """Python 2's integers above 31 bits."""
        text = self.line()
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text[:40]))

    def push_text(self, form):
        self.stack.append(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def push(self, value):
        self.stack.append(value)

    # -------------------------------- stack and memo

    def mark(self):
        self.marks.append(self.stack)
        self.stack = []

    def above_mark(self):
        above, self.stack = self.stack, self.marks.pop()
        return above

    def drop(self):
        if self.stack:
            self.stack.pop()
        else:
            self.above_mark()

    def put(self, index):
        self.memo[index] = self.stack[-1]

    def get(self, index):
        self.stack.append(self.memo[index])

    # -------------------------------- containers

    def push_tuple(self, n):
        if len(self.stack) < n:
            raise IndexError
        self.stack[len(self.stack) - n:] = [tuple(self.stack[len(self.stack) - n:])]

    def push_dict(self, keys_and_values):
        self.stack.append({})
        self.set_items(keys_and_values)

    def set_items(self, keys_and_values):
        target = self.stack[-1]
        if type(target) is not dict or len(keys_and_values) % 2:
            raise damaged("items of what is not a dict")
        for i in range(0, len(keys_and_values), 2):
            target[key_of(keys_and_values[i])] = keys_and_values[i + 1]

    def set_item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items((key, value))

    def extend(self, values):
        if type(self.stack[-1]) is not list:
            raise damaged("appends to what is not a list")
        self.stack[-1].extend(values)

    # -------------------------------- names and calls

    def push_global(self, module, name):
        if type(module) is not str or type(name) is not str or len(module) + len(name) > 2 * LONGEST_NAME:
            raise damaged("an impossible name")
        if (module, name) in ADMITTED:
            self.push(ADMITTED[module, name])
        elif module == "__torch__" or module.startswith("__torch__."):
            self.script_types.add(name)
            self.push(ScriptType(name))
        else:
            raise Malformed(f"its pickle asks for {module}.{name}, which is not part of a tensor; it may be "
                            "hostile, nothing in it was run")

    def push_stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def arguments(self):
        arguments = self.stack.pop()
        if type(arguments) is not tuple or len(arguments) > MOST_ARGUMENTS:
            raise damaged("a call without a tuple of arguments")
        return arguments

    def call(self):
        arguments = self.arguments()
        self.stack[-1] = self.stack[-1](*arguments)

    def make_object(self):
        if self.arguments() or type(self.stack[-1]) is not ScriptType:
            raise damaged("an object of an unknown class")
        self.stack[-1] = ScriptModule()

    def instance(self):
        self.push_global(self.line(), self.line())
        raise damaged("an opcode that torch does not write")

    def build(self):
        """Attributes of an object; those of dicts (torch's _metadata) are ignored."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is ScriptModule and type(state) is dict:
            target.attributes = state
        elif type(target) not in (ScriptModule, dict):
            raise damaged("attributes of what has none")

    def push_storage(self):
        pid = self.stack.pop()
        if (type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage"
            or (len(pid) == 6 and pid[5] is not None)):
            raise damaged("an unknown persistent id")
        dtype, key, count = pid[1], key_of(pid[2]), pid[4]
        if dtype not in TORCH_STORAGES.values() or not is_count(count):
            raise damaged("a malformed storage")
        known = self.storages.setdefault(key, Storage(dtype, key, count))
        if (known.dtype, known.count) != (dtype, count):
            raise damaged(f"storage {key} is described in two ways")
        self.push(known)


OPCODES = {
    # PROTO, FRAME
    b"\x80": lambda p: p.take(1), b"\x95": lambda p: p.take(8),
    # NONE, NEWTRUE, NEWFALSE, EMPTY_TUPLE, EMPTY_LIST, EMPTY_SET (as a list), EMPTY_DICT
    b"N": lambda p: p.push(None), b"\x88": lambda p: p.push(True), b"\x89": lambda p: p.push(False),
    b")": lambda p: p.push(()), b"]": lambda p: p.push([]), b"\x8f": lambda p: p.push([]),
    b"}": lambda p: p.push({}),
    # BININT1, BININT2, BININT, BINFLOAT, LONG1, LONG4, INT
    b"K": lambda p: p.push(p.take(1)[0]), b"M": lambda p: p.push(p.number("<H")),
    b"J": lambda p: p.push(p.number("<i")), b"G": lambda p: p.push(p.number(">d")),
    b"\x8a": lambda p: p.push_integer(p.number("<B")), b"\x8b": lambda p: p.push_integer(p.number("<I")),
    b"I": Pickle.push_integer_line,
    # BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, Python 2's BINSTRING and SHORT_BINSTRING
    b"X": lambda p: p.push_text("<I"), b"\x8c": lambda p: p.push_text("<B"),
    b"\x8d": lambda p: p.push_text("<Q"), b"T": lambda p: p.push_text("<I"),
    b"U": lambda p: p.push_text("<B"),
    # BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8
    b"B": lambda p: p.push(p.take(p.number("<I"))), b"C": lambda p: p.push(p.take(p.number("<B"))),
    b"\x8e": lambda p: p.push(p.take(p.number("<Q"))), b"\x96": lambda p: p.push(p.take(p.number("<Q"))),
    # MARK, POP, POP_MARK, DUP
    b"(": Pickle.mark, b"0": Pickle.drop, b"1": lambda p: p.above_mark() and None,
    b"2": lambda p: p.push(p.stack[-1]),
    # BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
    b"q": lambda p: p.put(p.take(1) + b"\0\0\0"), b"r": lambda p: p.put(p.take(4)),
    b"\x94": lambda p: p.put(len(p.memo).to_bytes(4, "little")),
    b"h": lambda p: p.get(p.take(1) + b"\0\0\0"), b"j": lambda p: p.get(p.take(4)),
    # TUPLE, TUPLE1, TUPLE2, TUPLE3, FROZENSET (as a tuple)
    b"t": lambda p: p.push(tuple(p.above_mark())), b"\x85": lambda p: p.push_tuple(1),
    b"\x86": lambda p: p.push_tuple(2), b"\x87": lambda p: p.push_tuple(3),
    b"\x91": lambda p: p.push(tuple(p.above_mark())),
    # LIST, APPEND, APPENDS, ADDITEMS
    b"l": lambda p: p.push(p.above_mark()), b"a": lambda p: p.extend([p.stack.pop()]),
    b"e": lambda p: p.extend(p.above_mark()), b"\x90": lambda p: p.extend(p.above_mark()),
    # DICT, SETITEM, SETITEMS
    b"d": lambda p: p.push_dict(p.above_mark()), b"s": Pickle.set_item,
    b"u": lambda p: p.set_items(p.above_mark()),
    # GLOBAL, STACK_GLOBAL, INST, REDUCE, NEWOBJ, BUILD, BINPERSID
    b"c": lambda p: p.push_global(p.line(), p.line()), b"\x93": Pickle.push_stack_global,
    b"i": Pickle.instance, b"R": Pickle.call, b"\x81": Pickle.make_object, b"b": Pickle.build,
    b"Q": Pickle.push_storage,
}
