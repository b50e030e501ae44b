# What types and attributes tell people of themselves: where users import them from, and what an attribute is.

cdef extern from *:
    """
    /* Types that are not made at run time carry their module within their name. */
    static void call_type(PyObject *type, const char *name)
    {
        ((PyTypeObject *)type)->tp_name = name;
    }

    /* Cython has no docstrings for the attributes that it makes readable. */
    static int describe(PyObject *type, const char *name, const char *text)
    {
        PyObject *found = PyObject_GetAttrString(type, name);
        int is_attribute = found && Py_IS_TYPE(found, &PyGetSetDescr_Type);
        if (is_attribute)
            ((PyGetSetDescrObject *)found)->d_getset->doc = text;
        else if (found)
            PyErr_Format(PyExc_TypeError, "%s is no attribute", name);
        Py_XDECREF(found);
        return is_attribute ? 0 : -1;
    }
    """
    void call_type(object type, const char *name)
    int describe(object type, const char *name, const char *text) except -1


call_type(Message, b"multisocket.Message")
call_type(Loan, b"multisocket.Loan")

describe(Message, b"flags", b"Send type and further flags, see ``multisocket.message``.")
describe(Message, b"ttl", b"How many more nodes may pass it on.")
describe(Message, b"pipe_id", b"Of the pipe that it came by; 0: it did not come.")
describe(Message, b"is_remote", b"It came over a network, to this Socket or to an earlier node of this machine.")
describe(Arena, b"name", b"Of its shared memory.")
describe(Board, b"name", b"Of its shared memory.")
describe(Ring, b"name", b"Of its shared memory.")
describe(Segment, b"name", b"Of its shared memory.")
describe(Wire, b"driver", b"What the layer above keeps with it.")
describe(Wire, b"blocked", b"What came last found no room.")
