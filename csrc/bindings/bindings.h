// Shared by the files of this folder, which are the only ones that use pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace flashjanus {

// One member of a struct of arguments: addresses come as integers, a Dtype as its number.
template <class P>
struct Field {
    const char* name;
    std::function<void(P&, pybind11::handle)> set;
    std::function<std::string(const P&)> show;  // empty for addresses

    template <class T>
    Field(const char* name, T P::* member) : name(name) {
        if constexpr (std::is_pointer_v<T>) {
            set = [member](P& p, pybind11::handle value) { p.*member = reinterpret_cast<T>(value.cast<uintptr_t>()); };
        } else if constexpr (std::is_enum_v<T>) {
            set = [member](P& p, pybind11::handle value) { p.*member = static_cast<T>(value.cast<int32_t>()); };
            show = [member](const P& p) { return std::to_string(static_cast<int32_t>(p.*member)); };
        } else {
            set = [member](P& p, pybind11::handle value) { p.*member = value.cast<T>(); };
            show = [member](const P& p) { return std::to_string(p.*member); };
        }
    }
};

template <class P>
using Fields = std::vector<Field<P>>;

// The members of P, in order: generate.py writes them.
template <class P>
const Fields<P>& fields();

// Takes `name` out of `arguments` and gives it to `use`; TypeError where it is not of the type that `use` casts it to.
template <class Use>
void take_one(const char* kernel, pybind11::dict& arguments, const char* name, const Use& use) {
    const auto value = pybind11::object(arguments.attr("pop")(name));
    try {
        use(value);
    } catch (const pybind11::cast_error&) {
        throw pybind11::type_error(std::string(kernel) + ": argument '" + name + "' does not fit its type, got " +
                                   std::string(pybind11::repr(value)));
    }
}

// Every field of P out of `arguments`; TypeError where one is missing.
template <class P>
P take(const char* kernel, pybind11::dict& arguments) {
    P params{};
    for (const Field<P>& field : fields<P>()) {
        if (!arguments.contains(field.name)) {
            throw pybind11::type_error(std::string(kernel) + ": missing argument '" + field.name + "'");
        }
        take_one(kernel, arguments, field.name, [&](const pybind11::object& value) { field.set(params, value); });
    }
    return params;
}

// An argument beside the fields.
template <class T>
T take(const char* kernel, pybind11::dict& arguments, const char* name, T otherwise) {
    T taken = otherwise;
    const auto use = [&](const pybind11::object& value) { taken = value.cast<T>(); };
    if (arguments.contains(name)) take_one(kernel, arguments, name, use);
    return taken;
}

inline void expect_empty(const char* kernel, const pybind11::dict& arguments) {
    for (const auto& item : arguments) {
        throw pybind11::type_error(std::string(kernel) + ": unexpected argument '" +
                                   std::string(pybind11::str(item.first)) + "'");
    }
}

template <class P>
std::string describe(const P& params) {
    std::string text;
    for (const Field<P>& field : fields<P>()) {
        if (field.show) text += (text.empty() ? "" : ", ") + std::string(field.name) + "=" + field.show(params);
    }
    return text;
}

// Register the CUDA half: bindings/cuda.cpp in a CUDA build, bindings/no_cuda.cpp otherwise.
void bind_cuda(pybind11::module_& module);

}  // namespace flashjanus
