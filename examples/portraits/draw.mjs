// Draws the sheets of portraits with DiceBear's Open Peeps (both pinned in draw.py, which calls this).
// stdin: JSON {size, portraits: [{head, skin, hair, beard, glasses, face, clothes}]}; the folder of PNG files is the argument.
import { createAvatar } from '@dicebear/core';
import { openPeeps } from '@dicebear/collection';
import { Resvg } from '@resvg/resvg-js';
import fs from 'node:fs';

const { size, portraits } = JSON.parse(fs.readFileSync(0, 'utf8'));
portraits.forEach((portrait, index) => {
  const svg = createAvatar(openPeeps, {
    seed: String(index),
    head: [portrait.head],
    skinColor: [portrait.skin],
    headContrastColor: [portrait.hair],
    facialHair: portrait.beard ? [portrait.beard] : [],
    facialHairProbability: portrait.beard ? 100 : 0,
    accessories: portrait.glasses ? [portrait.glasses] : [],
    accessoriesProbability: portrait.glasses ? 100 : 0,
    maskProbability: 0,
    face: [portrait.face],
    clothingColor: [portrait.clothes],
  }).toString();
  const png = new Resvg(svg, { fitTo: { mode: 'width', value: size } }).render().asPng();
  fs.writeFileSync(`${process.argv[2]}/${index}.png`, png);
});
