"""Owns an X server's clipboard and behaves as told until it is killed or someone else copies something: MODE [SIZE]."""

import sys

from Xlib import X, Xatom, display
from Xlib.protocol import event

MODE, SIZE = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
D = display.Display()
WINDOW = D.screen().root.create_window(0, 0, 1, 1, 0, D.screen().root_depth)
ATOM = D.intern_atom
CLIPBOARD, TARGETS, UTF8 = ATOM("CLIPBOARD"), ATOM("TARGETS"), ATOM("UTF8_STRING")
HINT, INCR = ATOM("x-kde-passwordManagerHint"), ATOM("INCR")

# The offered types, and the answer to each: bytes and their type.
OFFERS = {
    "password": {UTF8: (b"hunter2", UTF8), HINT: (b"secret", HINT)},
    "public": {UTF8: (b"public text", UTF8), HINT: (b"public", HINT)},
    "mark-withheld": {UTF8: (b"hunter2", UTF8), HINT: None},
    "latin": {Xatom.STRING: (b"caf\xe9", Xatom.STRING)},
    "text": {ATOM("TEXT"): ("caf\u00e9".encode(), UTF8)},
    "not-utf8": {UTF8: (b"caf\xe9", UTF8)},
    "withheld": {UTF8: None},
    "second": {UTF8: None, Xatom.STRING: (b"second", Xatom.STRING)},
    "image": {ATOM("image/png"): (b"\x89PNG", ATOM("image/png"))},
    "incr": {UTF8: (b"z" * SIZE, UTF8)},
    "silent": {UTF8: (b"never", UTF8)},
    "many": {UTF8: (b"first of many", UTF8)},
    "old": {Xatom.STRING: (b"old", Xatom.STRING)},
}[MODE]


def give(request, property_):
    """Writes the requested data to the property, and returns whether any exists."""
    window = request.requestor
    if request.target == TARGETS and MODE != "old":
        # In mode `many`, only the first listed type is a valid atom.
        more = [0x1FFFFFFF] * SIZE if MODE == "many" else []
        window.change_property(property_, Xatom.ATOM, 32, list(OFFERS) + more)
        return True
    given = OFFERS.get(request.target)
    if given is None:
        return False
    data, kind = given
    if MODE == "incr":
        window.change_attributes(event_mask=X.PropertyChangeMask)
        window.change_property(property_, INCR, 32, [len(data)])
        notify(request, property_)
        for start in list(range(0, len(data), 50_000)) + [len(data)]:
            until_taken(property_)
            window.change_property(property_, kind, 8, data[start : start + 50_000])
            D.flush()
        return None
    window.change_property(property_, kind, 8, data)
    return True


def until_taken(property_):
    while True:
        seen = D.next_event()
        if seen.type == X.PropertyNotify and seen.atom == property_ and seen.state == X.PropertyDelete:
            return


def notify(request, property_):
    request.requestor.send_event(
        event.SelectionNotify(
            time=request.time,
            requestor=request.requestor,
            selection=request.selection,
            target=request.target,
            property=property_,
        )
    )
    D.flush()


# Ignore errors from a window that no longer exists.
D.set_error_handler(lambda *_: None)
WINDOW.set_selection_owner(CLIPBOARD, X.CurrentTime)
D.sync()
assert D.get_selection_owner(CLIPBOARD) == WINDOW
print("owns", flush=True)
while True:
    request = D.next_event()
    if request.type == X.SelectionClear:
        break
    if request.type != X.SelectionRequest or MODE == "silent":
        continue
    answered = give(request, request.property or request.target)
    if answered is not None:
        notify(request, (request.property or request.target) if answered else X.NONE)
