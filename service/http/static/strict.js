// Lets Plotly run where no inline style is allowed: what it would write into style attributes is set
// property by property, which is allowed, and it makes no style elements (its rules go to
// plotly.css; those of its maps are not used).
const setAttribute = Element.prototype.setAttribute;
Element.prototype.setAttribute = function (name, value) {
  if (name === "style" && this.style) {
    this.style.cssText = value;
  } else {
    setAttribute.call(this, name, value);
  }
};
const appendChild = document.head.appendChild;
document.head.appendChild = function (node) {
  return node instanceof HTMLStyleElement ? node : appendChild.call(this, node);
};
