/* The one place that names the vendored library: `html` makes virtual nodes from templates. Values in a template become
 * text nodes or properties, and are never parsed as HTML. */

export {
  createContext, html, render, useContext, useEffect, useMemo, useReducer, useRef, useState,
} from "../vendor/htm/standalone.module.js";
